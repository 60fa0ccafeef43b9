/* The memory traffic of one Adam step and nothing else: four arrays are read and three of them written back. */
#include <stdint.h>
#include <stdlib.h>

static float *arrays[4];
static int64_t numel;

/* Allocates and touches the arrays with the threads that will use them. Returns 0, or 1 without memory. */
int prepare(int64_t count) {
  numel = count;
  for (int k = 0; k < 4; ++k) {
    arrays[k] = aligned_alloc(64, (size_t)((count * 4 + 63) / 64 * 64));
    if (arrays[k] == NULL) return 1;
  }
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < numel; ++i)
    for (int k = 0; k < 4; ++k) arrays[k][i] = 1e-6f;
  return 0;
}

void move(void) {
  float *restrict param = arrays[0], *restrict first = arrays[1], *restrict second = arrays[2];
  const float *restrict grad = arrays[3];
#pragma omp parallel for simd schedule(static)
  for (int64_t i = 0; i < numel; ++i) {
    param[i] += grad[i];
    first[i] += grad[i];
    second[i] += grad[i];
  }
}
