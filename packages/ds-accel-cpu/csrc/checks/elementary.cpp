// Measures elementary.h against the math library in double precision, and prints a sum over the bits of all results,
// which must be the same whatever flags this is compiled with. Exits with 1 if an error is above its bound.
#include "elementary.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>

namespace {

using Exact = double (*)(double);

struct Row {
  const char* name;
  Exact exact;
  double bound;  // units in the last place
};

const Row kRows[] = {{"exp", std::exp, 1.1}, {"tanh", std::tanh, 2.0}, {"erf", std::erf, 2.0}};

float ours(int row, float x) { return row == 0 ? dsk::exp_of(x) : row == 1 ? dsk::tanh_of(x) : dsk::erf_of(x); }

double unit(double exact) {
  const float rounded = std::fabs(static_cast<float>(exact));
  if (std::isinf(rounded)) return 0x1p104;
  const double next = std::nextafterf(rounded, INFINITY);
  return std::isinf(next) ? 0x1p104 : next - rounded;
}

double error(float got, double exact) {
  const float rounded = static_cast<float>(exact);
  if (got == rounded || (std::isnan(got) && std::isnan(rounded)))
    return got == rounded && !std::isinf(got) ? std::fabs(got - exact) / unit(exact) : 0.0;
  if (std::isnan(got) || std::isnan(rounded)) return INFINITY;
  const double found = std::isinf(got) ? std::copysign(0x1p128, got) : got;
  const double wanted = std::isinf(rounded) ? std::copysign(0x1p128, rounded) : exact;
  return std::fabs(found - wanted) / unit(exact);
}

}  // namespace

int main(int argc, char** argv) {
  const uint64_t step = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 101;
  bool good = true;
  for (int row = 0; row < 3; ++row) {
    double worst = 0.0;
    float where = 0.0f;
    uint64_t sum = 0;
    for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += step) {
      const float x = dsk::float_of(static_cast<uint32_t>(bits));
      const float got = ours(row, x);
      const double off = error(got, kRows[row].exact(x));
      if (off > worst) worst = off, where = x;
      if (!std::isnan(got)) sum = sum * 31 + dsk::bits_of(got);
    }
    for (float x : {0.0f, -0.0f})
      good = good && dsk::bits_of(ours(row, x)) == dsk::bits_of(static_cast<float>(kRows[row].exact(x)));
    for (float x : {INFINITY, -INFINITY}) good = good && ours(row, x) == static_cast<float>(kRows[row].exact(x));
    good = good && std::isnan(ours(row, NAN)) && worst <= kRows[row].bound;
    std::printf("%s: %.3f ulp at %a (allowed %.1f), bits %016llx\n", kRows[row].name, worst, where, kRows[row].bound,
                static_cast<unsigned long long>(sum));
  }
  double worst = 0.0;
  for (double x = 1e-3; x < 1e9; x *= 1.0000371) {
    const double exact = std::log(x);
    const double off = std::fabs(dsk::log_of(x) - exact) / std::fmax(std::fabs(exact), 1e-3);
    if (off > worst) worst = off;
  }
  good = good && worst < 1e-14 && dsk::log_of(0.0) == -INFINITY && dsk::log_of(INFINITY) == INFINITY &&
         std::isnan(dsk::log_of(NAN));
  std::printf("log: relative error %.2e\n", worst);
  return good ? 0 : 1;
}
