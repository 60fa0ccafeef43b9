// The division and square root of kernels/exact.h against the host's own, with guesses up to three units off.
//
// Usage: exact COUNT. Prints how many of each were compared; ends with 1 and the first difference if there is one.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

typedef uint32_t uint;
int wrong_by = 0;

uint as_uint(float x) {
  uint bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
float as_float(uint bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
using std::fabs;
using std::fma;
using std::sqrt;

#define DSK_GUESS(x) as_float(as_uint(x) + static_cast<uint>(wrong_by))
#include "../kernels/exact.h"

uint64_t state = 0x9e3779b97f4a7c15u;
uint random_bits() {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return static_cast<uint>(state >> 32);
}

// Any float, or one with an exponent near 0 or mantissa bits that are rare by chance.
float draw() {
  const uint bits = random_bits();
  switch (random_bits() % 4) {
    case 0:
      return as_float(bits);
    case 1:
      return as_float((bits & 0x807fffffu) | ((120 + (bits >> 23) % 16) << 23));
    case 2:
      return as_float(bits & 0x807fffffu);  // subnormal
    default:
      return as_float((bits & 0xff800000u) | ((bits & 8u) != 0 ? bits & 7u : 0x7fffffu - (bits & 7u)));
  }
}

bool same(float a, float b) { return as_uint(a) == as_uint(b) || (a != a && b != b); }

}  // namespace

int main(int count_of, char** arguments) {
  const long count = count_of > 1 ? std::atol(arguments[1]) : 1000000;
  const float edges[] = {0.0f, -0.0f, 1.0f, INFINITY, -INFINITY, NAN, 0x1p-149f, 0x1p-126f, 0x1.fffffep+127f, 3.0f};
  for (long i = 0; i < count; ++i) {
    wrong_by = static_cast<int>(i % 7) - 3;
    const float a = i < 100 ? edges[i / 10] : draw();
    const float b = i < 100 ? edges[i % 10] : draw();
    if (!same(divide(a, b), a / b)) {
      std::printf("divide(%a, %a) is %a, not %a, with a guess %d off\n", a, b, divide(a, b), a / b, wrong_by);
      return 1;
    }
    if (!same(root(a), std::sqrt(a))) {
      std::printf("root(%a) is %a, not %a, with a guess %d off\n", a, root(a), std::sqrt(a), wrong_by);
      return 1;
    }
  }
  std::printf("%ld quotients and roots are as the host's\n", count);
  return 0;
}
