// What a Hopper GPU lets a decode kernel reach: launch floor, streaming read by size, cycles of a
// chain step, rate of copies from the L2 with and without multicast.
//
//   nvcc -std=c++17 -O3 -gencode arch=compute_90a,code=sm_90a -o measure_limits
//   bench/cuda/measure_limits.cu
//   ./measure_limits > rows.jsonl
//
// One JSON object a line. Timings: a CUDA graph of a chain of kernels, replayed, best of five
// replays; read kernels walk distinct buffers of 256 MB or more in all, past the L2. "pdl":
// programmatic dependent launch between the kernels. Chain step: dependent mma.sync.m16n8k16 (BF16
// in, FP32 out), cycles by clock64 per step, longest warp of an SM. L2: bulk copies of a buffer
// that the L2 holds into shared memory; the bytes that arrive count, so a chunk sent to four CTAs
// four times.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <vector>

#include "cuda_check.cuh"

namespace {

__device__ void WaitForPrevious() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ void LetNextStart() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

__global__ void EmptyKernel() {
  LetNextStart();
  WaitForPrevious();
}

// Every thread streams 16-byte words; the sum keeps the loads alive.
__global__ void ReadKernel(const uint4* data, int64_t count, uint32_t* sink) {
  LetNextStart();
  uint32_t sum = 0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; i + 3 * stride < count; i += 4 * stride) {
    uint4 words[4];
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                   : "=r"(words[u].x), "=r"(words[u].y), "=r"(words[u].z), "=r"(words[u].w)
                   : "l"(data + i + u * stride));
    }
#pragma unroll
    for (int u = 0; u < 4; ++u) sum += words[u].x ^ words[u].y ^ words[u].z ^ words[u].w;
  }
  for (; i < count; i += stride) sum += data[i].x;
  WaitForPrevious();
  if (sum == 0x12345678u) *sink = sum;
}

__device__ void Mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Two codes of a word to two BF16 weights: 128 + u is exact in BF16, minus 136, times the scale,
// rounded once.
__device__ uint32_t DequantPair(uint32_t word, int shift, uint32_t scale) {
  const uint32_t magic = ((word >> shift) & 0x000F000Fu) | 0x43004300u;
  const uint32_t bias = 0x43084308u;
  const __nv_bfloat162 code = __hsub2(reinterpret_cast<const __nv_bfloat162&>(magic),
                                      reinterpret_cast<const __nv_bfloat162&>(bias));
  const __nv_bfloat162 weight = __hmul2(code, reinterpret_cast<const __nv_bfloat162&>(scale));
  return reinterpret_cast<const uint32_t&>(weight);
}

enum Mode { kBare, kDequant16, kDequant16Shared, kDequant8Shared };

// kSteps dependent steps; codes come from registers, activations from registers or shared memory.
template <int kMode>
__global__ void ChainKernel(uint32_t seed, long long* cycles, float* sink) {
  constexpr int kSteps = 512;
  __shared__ uint32_t activations[4096];
  for (int i = threadIdx.x; i < 4096; i += blockDim.x) activations[i] = 0x3F803F80u + seed;
  __syncthreads();
  const int lane = threadIdx.x % 32;
  float d[4] = {0, 0, 0, 0};
  uint32_t a[4] = {seed, seed + 1, seed + 2, seed + 3};
  uint32_t b[2] = {seed + 4, seed + 5};
  uint32_t word = seed * 2654435761u + lane;
  const uint32_t scale = 0x3C003C00u;
  const long long start = clock64();
#pragma unroll 8
  for (int step = 0; step < kSteps; ++step) {
    const int at = (step * 64 + lane) & 4095;
    if (kMode == kDequant16 || kMode == kDequant16Shared) {
      for (int r = 0; r < 4; ++r) a[r] = DequantPair(word, 4 * r, scale);
      word = word * 5u + 1u;
    }
    if (kMode == kDequant16Shared) {
      b[0] = activations[at];
      b[1] = activations[(at + 32) & 4095];
    }
    if (kMode == kDequant8Shared) {
      for (int r = 0; r < 2; ++r) b[r] = DequantPair(word, 4 * r, scale);
      word = word * 5u + 1u;
      for (int r = 0; r < 4; ++r) a[r] = activations[(at + 32 * r) & 4095];
    }
    Mma(d, a, b);
  }
  const long long end = clock64();
  if (lane == 0) cycles[blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32] = end - start;
  if (d[0] == 1.25f) *sink = d[0] + d[1] + d[2] + d[3];
}

constexpr int64_t kCopiedBuffer = int64_t{4} << 20;
constexpr int kCopyBytes = 192 << 10;  // of shared memory

__device__ uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
__device__ void WaitForPhase(uint32_t barrier, int phase) {
  asm volatile(
      "{\n.reg .pred done;\nretry:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra retry;\n}" ::"r"(barrier),
      "r"(phase)
      : "memory");
}
__device__ void ExpectBytes(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
__device__ void ArriveAt(uint32_t barrier, int cta) {
  asm volatile(
      "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}" ::"r"(barrier),
      "r"(cta)
      : "memory");
}

// A thread keeps kSlots chunks under way, another frees them; of every chunk each CTA of a cluster
// copies its share to all of them. A slot is written again when all have seen it full.
template <int kChunkBytes>
__global__ void CopyKernel(const uint8_t* data, int chunks, int cluster_size) {
  constexpr int kSlots = kCopyBytes / kChunkBytes;
  extern __shared__ __align__(128) uint8_t slots[];
  __shared__ uint64_t full[kSlots], empty[kSlots];
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  if (threadIdx.x == 0) {
    for (int s = 0; s < kSlots; ++s) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(SharedAddress(&full[s])));
      asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(&empty[s])),
                   "r"(cluster_size));
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    for (int s = 0; s < kSlots; ++s) ExpectBytes(SharedAddress(&full[s]), kChunkBytes);
  }
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
  const int share = kChunkBytes / cluster_size;
  const int64_t first = static_cast<int64_t>(blockIdx.x / cluster_size) * 5;
  const auto copy = [&](int i) {
    const int64_t offset = ((first + i) * kChunkBytes) % kCopiedBuffer + rank * share;
    const uint32_t slot = SharedAddress(slots + (i % kSlots) * kChunkBytes + rank * share);
    const uint32_t barrier = SharedAddress(&full[i % kSlots]);
    if (cluster_size == 1) {
      asm volatile(
          "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
          "[%3];" ::"r"(slot),
          "l"(data + offset), "r"(share), "r"(barrier)
          : "memory");
    } else {
      asm volatile(
          "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
          "[%0], [%1], %2, [%3], %4;" ::"r"(slot),
          "l"(data + offset), "r"(share), "r"(barrier),
          "h"(static_cast<uint16_t>((1 << cluster_size) - 1))
          : "memory");
    }
  };
  if (threadIdx.x == 32) {
    for (int i = 0; i < chunks; ++i) {
      if (i >= kSlots) WaitForPhase(SharedAddress(&empty[i % kSlots]), (i / kSlots + 1) % 2);
      copy(i);
    }
  } else if (threadIdx.x < cluster_size) {
    for (int i = 0; i < chunks; ++i) {
      const int s = i % kSlots;
      WaitForPhase(SharedAddress(&full[s]), i / kSlots % 2);
      if (i + kSlots >= chunks) continue;
      if (threadIdx.x == 0) ExpectBytes(SharedAddress(&full[s]), kChunkBytes);
      __syncwarp((1u << cluster_size) - 1);
      ArriveAt(SharedAddress(&empty[s]), threadIdx.x);
    }
  }
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}

template <class... Args>
void Launch(cudaStream_t stream, bool pdl, int grid, int block, void (*kernel)(Args...),
            Args... args) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(grid);
  config.blockDim = dim3(block);
  config.stream = stream;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = pdl ? 1 : 0;
  CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, args...));
}

// Microseconds per kernel of a graph that `record` fills with `count` kernels.
template <class Record>
double GraphMicroseconds(int count, Record record) {
  cudaStream_t stream;
  CUDA_CHECK(cudaStreamCreate(&stream));
  CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  record(stream);
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t begin, end;
  CUDA_CHECK(cudaEventCreate(&begin));
  CUDA_CHECK(cudaEventCreate(&end));
  float best = 1e30f;
  for (int repeat = 0; repeat < 6; ++repeat) {
    CUDA_CHECK(cudaEventRecord(begin, stream));
    CUDA_CHECK(cudaGraphLaunch(exec, stream));
    CUDA_CHECK(cudaEventRecord(end, stream));
    CUDA_CHECK(cudaEventSynchronize(end));
    float milliseconds = 0;
    CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
    if (repeat > 0 && milliseconds < best) best = milliseconds;
  }
  CUDA_CHECK(cudaGraphExecDestroy(exec));
  CUDA_CHECK(cudaGraphDestroy(graph));
  CUDA_CHECK(cudaStreamDestroy(stream));
  return 1000.0 * best / count;
}

void MeasureLaunches() {
  for (const bool pdl : {false, true}) {
    const double us = GraphMicroseconds(200, [&](cudaStream_t stream) {
      for (int i = 0; i < 200; ++i) Launch(stream, pdl, 132, 256, EmptyKernel);
    });
    std::printf("{\"kernel\": \"empty\", \"pdl\": %s, \"us\": %.3f}\n", pdl ? "true" : "false", us);
  }
}

void MeasureReads(int num_sms) {
  const int64_t total = int64_t{2} << 30;
  uint4* data;
  uint32_t* sink;
  CUDA_CHECK(cudaMalloc(&data, total));
  CUDA_CHECK(cudaMalloc(&sink, 4));
  CUDA_CHECK(cudaMemset(data, 0x5A, total));
  for (const int64_t megabytes : {1, 2, 4, 8, 16, 32, 50, 100, 1024}) {
    const int64_t bytes = megabytes << 20;
    const int count = static_cast<int>(total / bytes < 256 ? total / bytes : 256);
    for (const bool pdl : {false, true}) {
      double best = 1e30;
      int best_blocks = 0;
      for (const int blocks_per_sm : {2, 4, 8}) {
        const double us = GraphMicroseconds(count, [&](cudaStream_t stream) {
          for (int i = 0; i < count; ++i) {
            // Far apart, so that a small chain of buffers still exceeds the L2.
            const int64_t offset = (i * (total / count)) / 16;
            Launch(stream, pdl, num_sms * blocks_per_sm, 256, ReadKernel,
                   static_cast<const uint4*>(data + offset), bytes / 16, sink);
          }
        });
        if (us < best) {
          best = us;
          best_blocks = blocks_per_sm;
        }
      }
      std::printf(
          "{\"kernel\": \"read\", \"megabytes\": %lld, \"pdl\": %s, \"blocks_per_sm\": %d, \"us\": "
          "%.3f, \"tb_per_s\": %.3f}\n",
          static_cast<long long>(megabytes), pdl ? "true" : "false", best_blocks, best,
          bytes / best / 1e6);
    }
  }
  CUDA_CHECK(cudaFree(data));
  CUDA_CHECK(cudaFree(sink));
}

template <int kMode>
void MeasureChain(const char* name, int num_sms) {
  long long* cycles;
  float* sink;
  CUDA_CHECK(cudaMalloc(&cycles, 132 * 32 * sizeof(long long)));
  CUDA_CHECK(cudaMalloc(&sink, 4));
  for (const int warps : {1, 4, 8, 12, 16}) {
    std::vector<long long> host(static_cast<size_t>(num_sms * warps));
    for (int repeat = 0; repeat < 2; ++repeat) {
      ChainKernel<kMode><<<num_sms, warps * 32>>>(7, cycles, sink);
      CUDA_CHECK(cudaDeviceSynchronize());
    }
    CUDA_CHECK(
        cudaMemcpy(host.data(), cycles, host.size() * sizeof(long long), cudaMemcpyDeviceToHost));
    long long longest = 0;
    for (const long long value : host) longest = value > longest ? value : longest;
    std::printf(
        "{\"kernel\": \"chain\", \"variant\": \"%s\", \"warps_per_sm\": %d, \"cycles_per_step\": "
        "%.2f}\n",
        name, warps, longest / 512.0);
  }
  CUDA_CHECK(cudaFree(cycles));
  CUDA_CHECK(cudaFree(sink));
}

template <int kChunkBytes>
void MeasureCopies(const uint8_t* data) {
  const int chunks = (20 << 20) / kChunkBytes;
  const auto kernel = CopyKernel<kChunkBytes>;
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kCopyBytes));
  for (const int cluster_size : {1, 2, 4}) {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(cluster_size), 1, 1};
    cudaLaunchConfig_t config = {};
    config.blockDim = dim3(64);
    config.gridDim = dim3(static_cast<unsigned>(cluster_size));
    config.dynamicSmemBytes = kCopyBytes;
    config.attrs = &attribute;
    config.numAttrs = 1;
    int clusters = 0;
    CUDA_CHECK(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config));
    const int ctas = clusters * cluster_size;
    config.gridDim = dim3(static_cast<unsigned>(ctas));
    const double us = GraphMicroseconds(4, [&](cudaStream_t stream) {
      config.stream = stream;
      for (int i = 0; i < 4; ++i) {
        CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, data, chunks, cluster_size));
      }
    });
    const double arrived = static_cast<double>(ctas) * chunks * kChunkBytes;
    std::printf(
        "{\"kernel\": \"copy from the L2\", \"chunk_bytes\": %d, \"cluster\": %d, \"ctas\": %d, "
        "\"us\": %.1f, \"arrived_tb_per_s\": %.3f, \"read_tb_per_s\": %.3f}\n",
        kChunkBytes, cluster_size, ctas, us, arrived / us / 1e6, arrived / cluster_size / us / 1e6);
  }
}

}  // namespace

int main() {
  cudaDeviceProp device;
  CUDA_CHECK(cudaGetDeviceProperties(&device, 0));
  std::printf("{\"device\": \"%s\", \"sms\": %d}\n", device.name, device.multiProcessorCount);
  MeasureLaunches();
  MeasureReads(device.multiProcessorCount);
  MeasureChain<kBare>("bare", device.multiProcessorCount);
  MeasureChain<kDequant16>("dequantise 16 rows", device.multiProcessorCount);
  MeasureChain<kDequant16Shared>("dequantise 16 rows, activations from shared memory",
                                 device.multiProcessorCount);
  MeasureChain<kDequant8Shared>("dequantise 8 rows, activations from shared memory",
                                device.multiProcessorCount);
  uint8_t* data;
  CUDA_CHECK(cudaMalloc(&data, kCopiedBuffer));
  CUDA_CHECK(cudaMemset(data, 0x5A, kCopiedBuffer));
  MeasureCopies<4096>(data);
  MeasureCopies<8192>(data);
  MeasureCopies<16384>(data);
  MeasureCopies<32768>(data);
  return 0;
}
