// CUDA source on the host: the threads of a CTA take turns, up to where they wait for one another.
//
// Stands in for cuda_fp16.h, the built-in variables and the instructions that TVM wraps in functions. What a GPU would
// leave to luck is made to fail: shared memory begins as NaN in every CTA, an asynchronous copy turns its target into
// NaN and arrives when it is waited for, threads take turns in one order in one CTA and in the other in the next,
// barriers and instructions of a warp need all their threads at the same line, unaligned or foreign addresses stop the
// program (and AddressSanitizer watches every plain access).
//
// Fragments: PTX ISA, "Matrix Fragments for mma.m16n8k16 / m16n8k8", "ldmatrix".
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <string>
#include <ucontext.h>
#include <unistd.h>
#include <vector>

#define __forceinline__ inline
#define __device__
#define __host__
#define __global__
#define __restrict__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
typedef unsigned int uint;
typedef unsigned char uchar;

typedef _Float16 half;
struct alignas(4) half2 { half x, y; };
struct alignas(8) half4 { half x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { uint x, y; };
struct alignas(16) uint4 { uint x, y, z, w; };
inline half4 make_half4(half x, half y, half z, half w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline half2 make_half2(half x, half y) { return {x, y}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline half __float2half_rn(float x) { return (half)x; }
using std::max;
using std::min;

struct Index { uint x, y, z; } threadIdx, blockIdx;

namespace host {

[[noreturn]] void fail(const std::string& what) {
  fprintf(stderr, "CTA (%u, %u), thread %u: %s\n", blockIdx.x, blockIdx.y, threadIdx.x, what.c_str());
  _exit(3);
}

enum Wait { NOTHING, CTA, WARP, LDMATRIX, MMA_F16, MMA_TF32, END };

struct Copy { uchar* to; const void* from; uint size, filled; };

struct Thread {
  void* here[5];  // __builtin_setjmp
  bool begun = false;
  Wait wait = NOTHING;
  int line = 0;             // of CTA and WARP
  uint address;             // LDMATRIX
  uint* registers[4];
  float* d[4];              // MMA_*
  uint a[4], b[2];
  float c[4];
  std::vector<Copy> open;   // copies of no group yet
  std::deque<std::vector<Copy>> groups;
};

std::vector<Thread> threads;
uchar* shared = nullptr;
uint shared_bytes = 0;
std::vector<std::pair<void*, size_t>> fixed;  // shared memory of a size that the kernel gives
long matrices = 0, wavefronts = 0;  // of ldmatrix: 8 rows of 16 bytes, and the turns that reading them takes
void* scheduler[5];
void (*kernel)();

#define SWITCHES __attribute__((no_sanitize_address, noinline))
SWITCHES void jump(void** to) { __builtin_longjmp(to, 1); }
SWITCHES void pause(Thread& t) { if (!__builtin_setjmp(t.here)) jump(scheduler); }

void wait_for(Wait what, int line = 0) {
  Thread& t = threads[threadIdx.x];
  t.wait = what;
  t.line = line;
  pause(t);
}

void life() {
  for (;;) {
    kernel();
    wait_for(END);
  }
}

SWITCHES void resume(uint index) {
  Thread& t = threads[index];
  threadIdx.x = index;
  t.wait = NOTHING;
  if (__builtin_setjmp(scheduler)) return;
  if (t.begun) jump(t.here);
  t.begun = true;
  static ucontext_t fresh;
  getcontext(&fresh);
  fresh.uc_stack.ss_size = 1 << 18;
  fresh.uc_stack.ss_sp = malloc(fresh.uc_stack.ss_size);
  fresh.uc_link = nullptr;
  makecontext(&fresh, life, 0);
  setcontext(&fresh);
}

void fail_at(uint address, const char* what, uint of) {
  fail("shared address " + std::to_string(address) + " " + what + " " + std::to_string(of));
}

uchar* at(uint address, uint size, uint alignment) {
  if (address % alignment) fail_at(address, "is no multiple of", alignment);
  if (address + size > shared_bytes) fail_at(address, "lies behind", shared_bytes);
  return shared + address;
}

void finish(const std::vector<Copy>& group) {
  for (const Copy& c : group) {
    memset(c.to, 0, c.size);
    memcpy(c.to, c.from, c.filled);
  }
}

half number(uint word, int part) {
  half pair[2];
  memcpy(pair, &word, 4);
  return pair[part];
}

float tf32(uint word) {
  float x;
  word &= 0xffffe000;
  memcpy(&x, &word, 4);
  return x;
}

void ldmatrix(Thread* warp) {  // .x4.trans
  for (int i = 0; i < 4; i++) {
    half rows[8][8];
    int turns[8] = {};
    for (int r = 0; r < 8; r++) {
      uint address = warp[8 * i + r].address;
      memcpy(rows[r], at(address, 16, 16), 16);
      bool seen = false;
      for (int s = 0; s < r; s++) seen |= warp[8 * i + s].address == address;
      turns[address / 16 % 8] += !seen;
    }
    matrices++;
    wavefronts += *std::max_element(turns, turns + 8);
    for (int lane = 0; lane < 32; lane++) {
      half pair[2] = {rows[lane % 4 * 2][lane / 4], rows[lane % 4 * 2 + 1][lane / 4]};
      memcpy(warp[lane].registers[i], pair, 4);
    }
  }
}

void mma(Thread* warp, bool f16) {
  int depth = f16 ? 16 : 8;
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; lane++) {
    int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; i++) {
      int row = g + 8 * (i % 2);
      if (f16) for (int part = 0; part < 2; part++) a[row][2 * t + part + 8 * (i / 2)] = number(warp[lane].a[i], part);
      else a[row][t + 4 * (i / 2)] = tf32(warp[lane].a[i]);
    }
    for (int i = 0; i < 2; i++) {
      if (f16) for (int part = 0; part < 2; part++) b[2 * t + part + 8 * i][g] = number(warp[lane].b[i], part);
      else b[t + 4 * i][g] = tf32(warp[lane].b[i]);
    }
  }
  for (int lane = 0; lane < 32; lane++)
    for (int i = 0; i < 4; i++) {
      int row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
      float sum = warp[lane].c[i];
      for (int k = 0; k < depth; k++) sum += a[row][k] * b[k][column];
      *warp[lane].d[i] = sum;
    }
}

// Lets a warp run until all its lanes wait for the CTA or have ended.
void advance(Thread* warp, uint first, bool backwards) {
  for (;;) {
    for (int i = 0; i < 32; i++) {
      int lane = backwards ? 31 - i : i;
      if (warp[lane].wait == NOTHING) resume(first + lane);
    }
    Wait what = warp[0].wait;
    for (int lane = 1; lane < 32; lane++)
      if (warp[lane].wait != what || warp[lane].line != warp[0].line) fail("lanes of a warp wait at different places");
    if (what == CTA || what == END) return;
    if (what == LDMATRIX) ldmatrix(warp);
    if (what == MMA_F16 || what == MMA_TF32) mma(warp, what == MMA_F16);
    for (int lane = 0; lane < 32; lane++) warp[lane].wait = NOTHING;
  }
}

void run_cta(bool backwards) {
  memset(shared, 0xff, shared_bytes);
  for (auto& [buffer, bytes] : fixed) memset(buffer, 0xff, bytes);
  for (Thread& t : threads) {
    t.wait = NOTHING;
    t.open.clear();
    t.groups.clear();
  }
  int warps = threads.size() / 32;
  for (;;) {
    for (int i = 0; i < warps; i++) {
      int warp = backwards ? warps - 1 - i : i;
      advance(&threads[32 * warp], 32 * warp, backwards);
    }
    Wait what = threads[0].wait;
    for (Thread& t : threads)
      if (t.wait != what || t.line != threads[0].line) fail("threads wait for one another at different places");
    if (what == END) return;
    for (Thread& t : threads) t.wait = NOTHING;
  }
}

void run(void (*f)(), uint x, uint y, uint count, uint bytes) {
  kernel = f;
  threads.resize(count);
  shared_bytes = bytes;
  if (posix_memalign((void**)&shared, 1024, max(bytes, 16u))) fail("no memory");
  for (blockIdx.y = 0; blockIdx.y < y; blockIdx.y++)
    for (blockIdx.x = 0; blockIdx.x < x; blockIdx.x++) run_cta((blockIdx.x + blockIdx.y) % 2 == 0);
}

void* make_fixed(size_t bytes) {
  void* buffer;
  if (posix_memalign(&buffer, 64, bytes)) fail("no memory");
  memset(buffer, 0xff, bytes);
  fixed.emplace_back(buffer, bytes);
  return buffer;
}

void copy_async(uint to, const void* from, uint size, uint filled) {
  if ((uintptr_t)from % size) fail("a copy of " + std::to_string(size) + " bytes from an unaligned address");
  if (filled > size) fail("more bytes copied than asked for");
  Copy c{at(to, size, size), from, size, filled};
  memset(c.to, 0xff, size);
  threads[threadIdx.x].open.push_back(c);
}

void commit() {
  Thread& t = threads[threadIdx.x];
  t.groups.push_back(std::move(t.open));
  t.open.clear();
}

void wait_group(size_t left) {
  Thread& t = threads[threadIdx.x];
  for (; t.groups.size() > left; t.groups.pop_front()) finish(t.groups.front());
}

}  // namespace host

inline uint tvm_builtin_cuda_cvta_generic_to_shared(void* p) { return (uchar*)p - host::shared; }
#define tvm_builtin_cuda_cta_sync() host::wait_for(host::CTA, __LINE__)
#define __syncthreads() host::wait_for(host::CTA, __LINE__)
#define tvm_builtin_cuda_warp_sync() host::wait_for(host::WARP, __LINE__)
inline void tvm_builtin_ptx_cp_async_commit_group_async_commit_group() { host::commit(); }
inline void tvm_builtin_ptx_cp_async_wait_group_async_wait_group_0() { host::wait_group(0); }
inline void tvm_builtin_ptx_cp_async_wait_group_async_wait_group_1() { host::wait_group(1); }
inline void tvm_builtin_ptx_cp_async_wait_group_async_wait_group_2() { host::wait_group(2); }

#define COPIES(how, size)                                                                                            \
  inline void tvm_builtin_ptx_cp_async_##how##_async_##how##_shared_global_##size(uint to, const void* from) {       \
    host::copy_async(to, from, size, size);                                                                          \
  }                                                                                                                  \
  inline void tvm_builtin_ptx_cp_async_##how##_src_size_async_##how##_shared_global_##size(uint to, const void* from, \
                                                                                           uint filled) {            \
    host::copy_async(to, from, size, filled);                                                                        \
  }
COPIES(ca, 4)
COPIES(ca, 8)
COPIES(ca, 16)
COPIES(cg, 16)

inline void tvm_builtin_ptx_st_shared_u16(uint to, unsigned short x) { memcpy(host::at(to, 2, 2), &x, 2); }

inline void tvm_builtin_ptx_st_vec_shared_v2_f32(uint to, float x, float y) {
  float both[2] = {x, y};
  memcpy(host::at(to, 8, 8), both, 8);
}

inline void tvm_builtin_ptx_ld_vec_shared_v4_f32(float& x, float& y, float& z, float& w, uint from) {
  float all[4];
  memcpy(all, host::at(from, 16, 16), 16);
  x = all[0], y = all[1], z = all[2], w = all[3];
}

inline void tvm_builtin_ptx_cvt_tf32_f32_rna_tf32_f32(uint& to, float x) {
  memcpy(&to, &x, 4);
  to = (to + 0x1000) & 0xffffe000;
}

inline void tvm_builtin_ptx_ldmatrix_sync_aligned_m8n8_x4_trans_shared_b16(uint& a, uint& b, uint& c, uint& d,
                                                                           uint from) {
  host::Thread& t = host::threads[threadIdx.x];
  t.address = from;
  t.registers[0] = &a, t.registers[1] = &b, t.registers[2] = &c, t.registers[3] = &d;
  host::wait_for(host::LDMATRIX);
}

inline void multiply(host::Wait what, float* d[4], const uint (&a)[4], const uint (&b)[2], const float (&c)[4]) {
  host::Thread& t = host::threads[threadIdx.x];
  std::copy(d, d + 4, t.d);
  std::copy(a, a + 4, t.a);
  std::copy(b, b + 2, t.b);
  std::copy(c, c + 4, t.c);
  host::wait_for(what);
}

#define PRODUCT(name, what)                                                                                          \
  inline void name(float& d0, float& d1, float& d2, float& d3, uint a0, uint a1, uint a2, uint a3, uint b0, uint b1, \
                   float c0, float c1, float c2, float c3) {                                                         \
    float* d[4] = {&d0, &d1, &d2, &d3};                                                                              \
    multiply(what, d, {a0, a1, a2, a3}, {b0, b1}, {c0, c1, c2, c3});                                                 \
  }
PRODUCT(tvm_builtin_ptx_mma_sync_aligned_m16n8k16_row_col_f32_f16_f16_f32, host::MMA_F16)
PRODUCT(tvm_builtin_ptx_mma_sync_aligned_m16n8k8_row_col_f32_tf32_tf32_f32, host::MMA_TF32)
