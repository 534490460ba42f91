// The instruction sets that were compiled, and whether this processor has them.

extern "C" {

// Best first; the names are those of LIKELY_ROW_PASS.
__attribute__((visibility("default"))) int likely_sets(const char** names, int room) {
  int n = 0;
  auto add = [&](const char* name) { if (n < room) names[n++] = name; };
#ifdef LIKELY_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) add("avx512bf16");
  if (avx512) add("avx512");
  if (avx2) add("avx2");
#endif
  add("generic");
  return n;
}

}
