/* Which instructions this CPU has, by the names of Linux's /proc/cpuinfo, which a bundle's needs are in. The CPU itself
 * is asked (x86), or the kernel (ARM): emulators answer these questions, and pass the host's /proc/cpuinfo through. */
#include <string.h>

#include "internal.h"

#if defined(__x86_64__)
#include <cpuid.h>

enum { EAX, EBX, ECX, EDX };
typedef struct {
  const char *name;
  uint32_t leaf, sub;
  uint8_t word, bit;
  uint8_t saved; /* bits of XCR0 that say the system saves its registers: 0x06 of AVX, 0xe6 of AVX-512 */
} feature;

static const feature FEATURES[] = {
    {"sse4_1", 1, 0, ECX, 19, 0},          {"sse4_2", 1, 0, ECX, 20, 0},
    {"movbe", 1, 0, ECX, 22, 0},           {"popcnt", 1, 0, ECX, 23, 0},
    {"fma", 1, 0, ECX, 12, 0x06},          {"avx", 1, 0, ECX, 28, 0x06},
    {"f16c", 1, 0, ECX, 29, 0x06},         {"bmi1", 7, 0, EBX, 3, 0},
    {"avx2", 7, 0, EBX, 5, 0x06},          {"bmi2", 7, 0, EBX, 8, 0},
    {"avx512f", 7, 0, EBX, 16, 0xe6},      {"avx512dq", 7, 0, EBX, 17, 0xe6},
    {"avx512ifma", 7, 0, EBX, 21, 0xe6},   {"avx512cd", 7, 0, EBX, 28, 0xe6},
    {"avx512bw", 7, 0, EBX, 30, 0xe6},     {"avx512vl", 7, 0, EBX, 31, 0xe6},
    {"avx512vbmi", 7, 0, ECX, 1, 0xe6},    {"avx512_vbmi2", 7, 0, ECX, 6, 0xe6},
    {"gfni", 7, 0, ECX, 8, 0},             {"vaes", 7, 0, ECX, 9, 0x06},
    {"vpclmulqdq", 7, 0, ECX, 10, 0x06},   {"avx512_vnni", 7, 0, ECX, 11, 0xe6},
    {"avx512_bitalg", 7, 0, ECX, 12, 0xe6}, {"avx512_vpopcntdq", 7, 0, ECX, 14, 0xe6},
    {"avx512_fp16", 7, 0, EDX, 23, 0xe6},  {"avx_vnni", 7, 1, EAX, 4, 0x06},
    {"avx512_bf16", 7, 1, EAX, 5, 0xe6},   {"abm", 0x80000001, 0, ECX, 5, 0},
};

static uint64_t saved_registers(void) {
  uint32_t a, b, c, d, low, high;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t)high << 32 | low;
}

static bool has(const char *name) {
  for (size_t i = 0; i < LENGTH(FEATURES); i++) {
    const feature *f = &FEATURES[i];
    uint32_t word[4] = {0};
    if (strcmp(f->name, name)) continue;
    if (!__get_cpuid_count(f->leaf, f->sub, &word[EAX], &word[EBX], &word[ECX], &word[EDX])) return false;
    return word[f->word] >> f->bit & 1 && (saved_registers() & f->saved) == f->saved;
  }
  return false; /* of an instruction set that this version knows nothing of */
}

const char *this_machine(void) { return "x86_64"; }

#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

static bool has(const char *name) {
  static const struct {
    const char *name;
    int list, bit; /* of AT_HWCAP, AT_HWCAP2 */
  } FEATURES[] = {{"asimd", AT_HWCAP, 1}, {"asimdhp", AT_HWCAP, 10}, {"asimddp", AT_HWCAP, 20},
                  {"sve", AT_HWCAP, 22},  {"sve2", AT_HWCAP2, 1},    {"i8mm", AT_HWCAP2, 13}};
  for (size_t i = 0; i < LENGTH(FEATURES); i++)
    if (!strcmp(FEATURES[i].name, name)) return getauxval((unsigned long)FEATURES[i].list) >> FEATURES[i].bit & 1;
  return false;
}

const char *this_machine(void) { return "aarch64"; }

#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>

static bool has(const char *name) {
  static const char *const NAMES[][2] = {{"asimd", "hw.optional.AdvSIMD"},
                                         {"asimdhp", "hw.optional.arm.FEAT_FP16"},
                                         {"asimddp", "hw.optional.arm.FEAT_DotProd"},
                                         {"i8mm", "hw.optional.arm.FEAT_I8MM"}};
  for (size_t i = 0; i < LENGTH(NAMES); i++) {
    int found = 0;
    size_t size = sizeof found;
    if (!strcmp(NAMES[i][0], name)) return !sysctlbyname(NAMES[i][1], &found, &size, NULL, 0) && found;
  }
  return false;
}

const char *this_machine(void) { return "aarch64"; }

#else
#error "libkerf knows no CPUs but x86-64 and aarch64"
#endif

const char *lacking(const char *machine, const char *const *features, size_t count) {
  if (strcmp(machine, this_machine())) return NULL;
  for (size_t i = 0; i < count; i++)
    if (!has(features[i])) return features[i];
  return "";
}
