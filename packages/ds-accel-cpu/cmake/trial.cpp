// One instruction of each kind that a level's flags allow: finds a compiler or an assembler that is too old for it.
int main() {
#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)
  __asm__ volatile("vpdpbusd %zmm0, %zmm1, %zmm2");
  __asm__ volatile("vdpbf16ps %zmm0, %zmm1, %zmm2");
#endif
#if defined(__AMX_TILE__)
  __asm__ volatile("vaddph %zmm0, %zmm1, %zmm2");
  __asm__ volatile("tdpbssd %tmm0, %tmm1, %tmm2");
  __asm__ volatile("tdpbf16ps %tmm0, %tmm1, %tmm2");
#endif
#if defined(__ARM_FEATURE_SVE)
  __asm__ volatile("ptrue p0.b");
#endif
  return 0;
}
