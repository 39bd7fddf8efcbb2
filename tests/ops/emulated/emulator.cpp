// Runs CUDA kernels on the CPU, to find what a GPU would show as wrong numbers, or only sometimes. The
// threads of a block are fibers of one thread, run in random order from each barrier or warp operation to the
// next, so that a missing barrier shows; a barrier that not every thread reaches is an error; shared memory
// is poisoned before each block. Under the address sanitizer every access to a tensor's memory is checked as
// well.
#include "cuda_runtime.h"

#include <link.h>
#include <sanitizer/asan_interface.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <torch/csrc/stable/c/shim.h>
#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <numeric>
#include <queue>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulated {
namespace {

constexpr size_t kStack = 256 << 10;
constexpr size_t kPage = 4096;
constexpr unsigned kMaxThreads = 1024;

struct Fiber {
  enum State { kReady, kAtBarrier, kInWarp, kDone };

  unsigned index = 0;  // in the block
  uint3 thread{};
  unsigned rank = 0;
  State state = kReady;
  Where where;        // of what it waits in, as are the next ones
  unsigned mask = 0;  // the lanes that it waits for
  uint64_t given = 0, received = 0;
  int source = 0;

  char* stack = nullptr;
  bool begun = false;
  ucontext_t beginning;  // here, since the sanitizer would take it off no stack that is left by `setcontext`
  jmp_buf context;
  void* fake_stack = nullptr;
};

std::mutex mutex;
std::minstd_rand generator;  // goes on from launch to launch: no result may depend on it
std::vector<std::unique_ptr<Fiber>> fibers;
Fiber* running = nullptr;
jmp_buf scheduler;
const std::function<void()>* body = nullptr;
cudaError_t last_error = cudaSuccess;
int guards = 0;
char stream;  // its address is the stream

// ---- Fibers: ucontext begins them, longjmp switches, which unlike swapcontext makes no system call.

#ifdef __SANITIZE_ADDRESS__
const void* scheduler_stack = nullptr;
size_t scheduler_stack_size = 0;

void leave_for(const Fiber& fiber, void** save) {
  __sanitizer_start_switch_fiber(save, fiber.stack + kPage, kStack - kPage);
}
void leave_for_scheduler(void** save) {
  __sanitizer_start_switch_fiber(save, scheduler_stack, scheduler_stack_size);
}
void arrive_in_fiber(void* saved) {
  __sanitizer_finish_switch_fiber(saved, &scheduler_stack, &scheduler_stack_size);
}
void arrive_in_scheduler(void* saved) { __sanitizer_finish_switch_fiber(saved, nullptr, nullptr); }
#else
void leave_for(const Fiber&, void**) {}
void leave_for_scheduler(void**) {}
void arrive_in_fiber(void*) {}
void arrive_in_scheduler(void*) {}
#endif

// From the fiber that runs into the scheduler; returns when the fiber is resumed.
void suspend() {
  Fiber& fiber = *running;
  leave_for_scheduler(&fiber.fake_stack);
  if (_setjmp(fiber.context) == 0) _longjmp(scheduler, 1);
  arrive_in_fiber(fiber.fake_stack);
}

void fiber_main() {
  arrive_in_fiber(nullptr);
  for (;;) {  // a block's thread after another
    (*body)();
    running->state = Fiber::kDone;
    suspend();
  }
}

void begin(Fiber& fiber) {
  ASAN_UNPOISON_MEMORY_REGION(fiber.stack, kStack);  // of a thread that never returned
  getcontext(&fiber.beginning);
  fiber.beginning.uc_stack.ss_sp = fiber.stack + kPage;
  fiber.beginning.uc_stack.ss_size = kStack - kPage;
  makecontext(&fiber.beginning, fiber_main, 0);
  fiber.begun = true;
  setcontext(&fiber.beginning);
}

void resume(Fiber& fiber) {
  running = &fiber;
  threadIdx = fiber.thread;
  void* fake_stack = nullptr;
  leave_for(fiber, &fake_stack);
  if (_setjmp(scheduler) == 0) {
    if (fiber.begun) _longjmp(fiber.context, 1);
    begin(fiber);
  }
  arrive_in_scheduler(fake_stack);
}

void make_fibers(size_t count) {
  while (fibers.size() < count) {
    auto fiber = std::make_unique<Fiber>();
    void* stack =
        mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED || mprotect(stack, kPage, PROT_NONE) != 0) throw std::bad_alloc();
    fiber->stack = static_cast<char*>(stack);
    fibers.push_back(std::move(fiber));
  }
}

// ---- Shared memory: the thread-local variables of this library.

#ifdef __SANITIZE_ADDRESS__
void poison_shared_memory() {}
#else
thread_local volatile char touched;

struct Block {
  void* begin;
  size_t size;
};

int find_shared_memory(dl_phdr_info* info, size_t, void* result) {
  const auto here = reinterpret_cast<ElfW(Addr)>(&find_shared_memory);
  bool ours = false;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& segment = info->dlpi_phdr[i];
    const auto begin = info->dlpi_addr + segment.p_vaddr;
    ours |= segment.p_type == PT_LOAD && begin <= here && here < begin + segment.p_memsz;
  }
  if (!ours) return 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& segment = info->dlpi_phdr[i];
    if (segment.p_type == PT_TLS) *static_cast<Block*>(result) = {info->dlpi_tls_data, segment.p_memsz};
  }
  return 1;
}

void poison_shared_memory() {
  touched = 1;  // has the memory allocated
  Block block{};
  dl_iterate_phdr(&find_shared_memory, &block);
  std::memset(block.begin, 0xFF, block.size);  // NaN, or -1
}
#endif

// ---- Blocks.

std::string describe(const Fiber& fiber) {
  std::ostringstream text;
  text << "thread " << fiber.index;
  if (fiber.state == Fiber::kDone) {
    text << " has returned";
  } else {
    text << " waits in line " << fiber.where.line() << " of " << fiber.where.file_name();
  }
  return text.str();
}

bool together(const Fiber& a, const Fiber& b) {
  return a.state == b.state && a.mask == b.mask && a.where.line() == b.where.line() &&
         a.where.column() == b.where.column() && std::strcmp(a.where.file_name(), b.where.file_name()) == 0;
}

// Calls `f` with the threads that `fiber` waits for, which are a whole block or lanes of a warp, until it
// returns false; returns whether it never did.
template <typename F>
bool for_partners(const Fiber& fiber, unsigned threads, const F& f) {
  const bool block = fiber.state == Fiber::kAtBarrier;
  const unsigned first = block ? 0 : fiber.index / warpSize * warpSize;
  const unsigned last = block ? threads : std::min(first + warpSize, threads);
  for (unsigned i = first; i < last; ++i) {
    if ((block || fiber.mask >> (i - first) & 1) && !f(*fibers[i])) return false;
  }
  return true;
}

void complete(const std::vector<Fiber*>& group) {
  if (group[0]->state == Fiber::kAtBarrier) {
    const auto count =
        std::count_if(group.begin(), group.end(), [](Fiber* each) { return each->given != 0; });
    for (Fiber* each : group) each->received = static_cast<uint64_t>(count);
    return;
  }
  uint64_t votes = 0;
  for (Fiber* each : group) votes |= static_cast<uint64_t>(each->given != 0) << each->index % warpSize;
  for (Fiber* each : group) {
    if (each->source == kVote) {
      each->received = votes;
      continue;
    }
    const auto source = std::find_if(group.begin(), group.end(), [&](Fiber* other) {
      return static_cast<int>(other->index % warpSize) == each->source;
    });
    if (source == group.end()) {
      throw std::runtime_error("divergent warp: " + describe(*each) + " for lane " +
                               std::to_string(each->source) + ", which takes no part");
    }
    each->received = (*source)->given;
  }
}

// The thread of the lowest rank runs as far as it can. One after another, the threads of a warp in a row: a
// thread chosen anew each time would be overtaken only by a few steps, and a warp that runs far ahead shows
// more.
void draw_ranks(unsigned threads) {
  std::vector<unsigned> warps((threads + warpSize - 1) / warpSize);
  std::iota(warps.begin(), warps.end(), 0);
  std::shuffle(warps.begin(), warps.end(), generator);
  std::vector<unsigned> lanes(warpSize);
  std::iota(lanes.begin(), lanes.end(), 0);
  unsigned rank = 0;
  for (const unsigned warp : warps) {
    std::shuffle(lanes.begin(), lanes.end(), generator);
    for (const unsigned lane : lanes) {
      const unsigned index = warp * warpSize + lane;
      if (index < threads) fibers[index]->rank = rank++;
    }
  }
}

struct RunsLater {
  bool operator()(const Fiber* a, const Fiber* b) const { return a->rank > b->rank; }
};

void run_block(unsigned threads) {
  poison_shared_memory();
  draw_ranks(threads);
  std::priority_queue<Fiber*, std::vector<Fiber*>, RunsLater> ready;
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& fiber = *fibers[i];
    fiber.index = i;
    fiber.thread = {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)};
    fiber.state = Fiber::kReady;
    ready.push(&fiber);
  }
  while (!ready.empty()) {
    Fiber& fiber = *ready.top();
    ready.pop();
    resume(fiber);
    if (fiber.state == Fiber::kDone) continue;
    if (!for_partners(fiber, threads, [&](Fiber& other) { return together(fiber, other); })) continue;
    std::vector<Fiber*> group;
    for_partners(fiber, threads, [&](Fiber& other) {
      group.push_back(&other);
      return true;
    });
    complete(group);
    if (fiber.state == Fiber::kAtBarrier) draw_ranks(threads);
    for (Fiber* each : group) {
      each->state = Fiber::kReady;
      ready.push(each);
    }
  }
  for (unsigned i = 0; i < threads; ++i) {
    if (fibers[i]->state == Fiber::kDone) continue;
    for_partners(*fibers[i], threads, [&](Fiber& other) {
      if (together(*fibers[i], other)) return true;
      throw std::runtime_error("divergent threads: " + describe(*fibers[i]) + ", but " + describe(other));
    });
  }
}

uint64_t wait(Fiber::State state, unsigned mask, uint64_t given, int source, Where where) {
  Fiber& fiber = *running;
  fiber.state = state;
  fiber.mask = mask;
  fiber.given = given;
  fiber.source = source;
  fiber.where = where;
  suspend();
  return fiber.received;
}

}  // namespace

int barrier(bool predicate, Where where) {
  return static_cast<int>(wait(Fiber::kAtBarrier, 0, predicate, 0, where));
}

uint64_t exchange(unsigned mask, uint64_t bits, int source, Where where) {
  return wait(Fiber::kInWarp, mask, bits, source, where);
}

cudaError_t run(const cudaLaunchConfig_t& config, const std::function<void()>& thread) {
  const std::lock_guard lock(mutex);
  const dim3 grid = config.gridDim, block = config.blockDim;
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z, threads = uint64_t{block.x} * block.y * block.z;
  if (blocks == 0 || threads == 0 || threads > kMaxThreads || grid.x > 0x7fffffff || grid.y > 0xffff ||
      grid.z > 0xffff) {
    return last_error = cudaErrorInvalidConfiguration;
  }
  if (guards == 0) throw std::runtime_error("a launch on whatever device is current");
  if (static_cast<void*>(config.stream) != &stream)
    throw std::runtime_error("a launch on another stream than torch's");
  make_fibers(threads);
  body = &thread;
  gridDim = grid;
  blockDim = block;
  std::vector<uint64_t> order(blocks);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), generator);
  for (const uint64_t index : order) {
    blockIdx = {static_cast<unsigned>(index % grid.x), static_cast<unsigned>(index / grid.x % grid.y),
                static_cast<unsigned>(index / grid.x / grid.y)};
    try {
      run_block(static_cast<unsigned>(threads));
    } catch (...) {
      for (const auto& fiber : fibers) fiber->begun = false;  // those that still wait begin anew
      throw;
    }
  }
  return cudaSuccess;
}

}  // namespace emulated

cudaError_t cudaGetLastError() { return std::exchange(emulated::last_error, cudaSuccess); }

// ---- What csrc/cuda takes from a torch that was built for CUDA. Linked with -Bsymbolic, so that the kernels
// call these even where torch has its own.

extern "C" {

AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** result) {
  *result = &emulated::stream;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* result) {
  ++emulated::guards;
  *result = reinterpret_cast<DeviceGuardHandle>(&emulated::guards);
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) {
  --emulated::guards;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError torch_c10_cuda_check_msg(int32_t error, const char*, const char*, uint32_t, bool,
                                        char** message) {
  *message = error == cudaSuccess ? nullptr : strdup("CUDA error: invalid configuration argument");
  return AOTI_TORCH_SUCCESS;
}

void torch_c10_cuda_free_error_msg(char* message) { free(message); }

}  // extern "C"
