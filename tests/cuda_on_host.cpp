// Runs the kernels of engines/kernels on a processor, thread by thread, so that their source is tested where no GPU is.
//
// A block's threads are fibers that run in turn, each until it meets the others at a barrier or in a warp's exchange. A thread
// that reads what another has not yet written, because a barrier is missing, reads what was there before, and the tests fail.
// Compiled with -DKERNELS='"path.cu"' and a folder of empty files that stand for CUDA's headers.

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

using std::isfinite, std::isnan, std::max, std::min;
typedef _Float16 half;
struct __align__(16) float4 { float x, y, z, w; };
struct __align__(16) int4 { int x, y, z, w; };
struct Index { unsigned x, y; };

static Index threadIdx, blockIdx, gridDim;
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
static half __float2half_rn(float value) { return static_cast<half>(value); }
static float __half2float(half value) { return static_cast<float>(value); }
static unsigned __float_as_uint(float value) { unsigned bits; std::memcpy(&bits, &value, 4); return bits; }
static float __uint_as_float(unsigned bits) { float value; std::memcpy(&value, &bits, 4); return value; }
static int __ffs(unsigned bits) { return __builtin_ffs(static_cast<int>(bits)); }
static int atomicAdd(int* at, int value) { const int before = *at; *at += value; return before; }
static void atomicMin(unsigned long long* at, unsigned long long value) { *at = min(*at, value); }

constexpr unsigned kBlock = 256, kLanes = 32;
constexpr size_t kStack = 1 << 17;

// Threads that wait for each other.
struct Meeting {
  unsigned size, arrived = 0, held = 0;
  void wait();
};

struct Fibers {
  jmp_buf scheduler, threads[kBlock];  // jumps between stacks, which cost no system call as swapcontext does
  std::vector<char> stacks = std::vector<char>(kBlock * kStack);
  enum { fresh, started, done } states[kBlock];
  Meeting block, warps[kBlock / kLanes];
  unsigned long long slots[kBlock];
} static fibers;

void Meeting::wait() {
  const unsigned meeting = held;
  if (++arrived == size) arrived = 0, ++held;
  while (held == meeting)
    if (_setjmp(fibers.threads[threadIdx.x]) == 0) _longjmp(fibers.scheduler, 1);
}

static void __syncthreads() { fibers.block.wait(); }
static void __syncwarp() { fibers.warps[threadIdx.x / kLanes].wait(); }

// What every thread of a warp gives, as the warp sees it.
template <typename T, typename Use>
static auto exchange(T value, Use use) {
  std::memcpy(&fibers.slots[threadIdx.x], &value, sizeof value);
  __syncwarp();
  T values[kLanes];
  for (unsigned lane = 0; lane < kLanes; ++lane)
    std::memcpy(&values[lane], &fibers.slots[threadIdx.x / kLanes * kLanes + lane], sizeof value);
  __syncwarp();
  return use(values);
}

template <typename T>
static T __shfl_xor_sync(unsigned, T value, int other) {
  return exchange(value, [&](const T* values) { return values[threadIdx.x % kLanes ^ other]; });
}
template <typename T>
static T __shfl_sync(unsigned, T value, int from) {
  return exchange(value, [&](const T* values) { return values[from]; });
}
static unsigned __ballot_sync(unsigned, bool value) {
  return exchange(value, [](const bool* values) {
    unsigned bits = 0;
    for (unsigned lane = 0; lane < kLanes; ++lane) bits |= static_cast<unsigned>(values[lane]) << lane;
    return bits;
  });
}
static bool __all_sync(unsigned mask, bool value) { return __ballot_sync(mask, value) == ~0u; }
static bool __any_sync(unsigned mask, bool value) { return __ballot_sync(mask, value) != 0; }
static bool __syncthreads_or(bool value) {
  fibers.slots[threadIdx.x] = value;
  __syncthreads();
  const bool any = std::any_of(fibers.slots, fibers.slots + kBlock, [](auto slot) { return slot != 0; });
  __syncthreads();
  return any;
}

// Copies happen when they are waited for, so that what is read too early is missing.
struct Copy { void* to; const void* from; size_t size; };
static std::vector<Copy> copies[kBlock];
static void __pipeline_memcpy_async(void* to, const void* from, size_t size) { copies[threadIdx.x].push_back({to, from, size}); }
static void __pipeline_commit() {}
static void __pipeline_wait_prior(int) {
  for (const Copy& copy : copies[threadIdx.x]) std::memcpy(copy.to, copy.from, copy.size);
  copies[threadIdx.x].clear();
}

// A lane holds 8 numbers of a 16 x 16 product, in row lane / 2 from column lane % 2 * 8, and the operands that they need.
namespace nvcuda::wmma {
struct matrix_a {}; struct matrix_b {}; struct accumulator {}; struct row_major {}; struct col_major {};
enum layout_t { mem_row_major };
template <typename Use, int, int, int, typename T, typename Layout = void>
struct fragment { T x[128]; };
static unsigned row() { return threadIdx.x % kLanes / 2; }
static unsigned column() { return threadIdx.x % 2 * 8; }
using A = fragment<matrix_a, 16, 16, 16, half, row_major>;
using B = fragment<matrix_b, 16, 16, 16, half, col_major>;
using C = fragment<accumulator, 16, 16, 16, float>;
static void fill_fragment(C& to, float value) { std::fill(to.x, to.x + 8, value); }
static void load_matrix_sync(A& to, const half* from, unsigned pitch) { std::copy_n(from + row() * pitch, 16, to.x); }
static void load_matrix_sync(B& to, const half* from, unsigned pitch) {
  for (unsigned i = 0; i < 8; ++i) std::copy_n(from + (column() + i) * pitch, 16, to.x + i * 16);
}
static void mma_sync(C& to, const A& left, const B& right, const C& add) {
  for (int i = 0; i < 8; ++i) {
    float sum = add.x[i];
    for (int k = 0; k < 16; ++k) sum += static_cast<float>(left.x[k]) * static_cast<float>(right.x[i * 16 + k]);
    to.x[i] = sum;
  }
}
static void store_matrix_sync(float* to, const C& from, unsigned pitch, layout_t) {
  std::copy_n(from.x, 8, to + row() * pitch + column());
}
}  // namespace nvcuda::wmma

#include KERNELS

static void (*kernel)(Search);
static Search parameters;

static void enter() {
  kernel(parameters);
  fibers.states[threadIdx.x] = Fibers::done;
  _longjmp(fibers.scheduler, 1);
}

// Runs a thread until it waits or ends.
static void resume(unsigned thread) {
  threadIdx = {thread, 0};
  if (_setjmp(fibers.scheduler) != 0) return;
  if (fibers.states[thread] == Fibers::started) _longjmp(fibers.threads[thread], 1);
  fibers.states[thread] = Fibers::started;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = fibers.stacks.data() + thread * kStack;
  context.uc_stack.ss_size = kStack;
  makecontext(&context, enter, 0);
  setcontext(&context);
}

extern "C" size_t parameters_size() { return sizeof(Search); }

extern "C" void launch(void (*chosen)(Search), const void* given, unsigned across, unsigned down) {
  kernel = chosen;
  std::memcpy(&parameters, given, sizeof parameters);
  gridDim = {across, down};
  for (unsigned block = 0; block < across * down; ++block) {
    blockIdx = {block % across, block / across};
    fibers.block = {kBlock};
    for (Meeting& warp : fibers.warps) warp = {kLanes};
    std::fill(fibers.states, fibers.states + kBlock, Fibers::fresh);
    for (bool running = true; running;) {
      running = false;
      for (unsigned thread = 0; thread < kBlock; ++thread) {
        if (fibers.states[thread] == Fibers::done) continue;
        resume(thread);
        running = true;
      }
    }
  }
}
