// Answers torch's questions about the current GPU where there is none, as an H200 would: loaded before torch's own
// libraries, so that autograd and torch.compile work on tensors without data whose device is "cuda".
#include <cstring>
#include <cuda_runtime_api.h>

#define EXPORTED __attribute__((visibility("default")))

namespace c10 { namespace cuda {
EXPORTED bool hasPrimaryContext(signed char) { return false; }
EXPORTED int GetDevice(signed char* device) { *device = 0; return 0; }
EXPORTED int SetDevice(signed char, bool) { return 0; }
EXPORTED int MaybeSetDevice(signed char) { return 0; }
EXPORTED signed char ExchangeDevice(signed char) { return 0; }
EXPORTED signed char MaybeExchangeDevice(signed char) { return 0; }
EXPORTED signed char current_device() { return 0; }
EXPORTED signed char device_count() noexcept { return 1; }
EXPORTED signed char device_count_ensure_non_zero() { return 1; }
EXPORTED int GetDeviceCount(int* count) { *count = 1; return 0; }
}}

extern "C" {
EXPORTED cudaError_t cudaGetDeviceCount(int* count) { *count = 1; return cudaSuccess; }
EXPORTED cudaError_t cudaGetDevice(int* device) { *device = 0; return cudaSuccess; }
EXPORTED cudaError_t cudaSetDevice(int) { return cudaSuccess; }
EXPORTED cudaError_t cudaRuntimeGetVersion(int* version) { *version = 13000; return cudaSuccess; }
EXPORTED cudaError_t cudaDriverGetVersion(int* version) { *version = 13000; return cudaSuccess; }
EXPORTED cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
EXPORTED cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
  *stream = reinterpret_cast<cudaStream_t>(1);
  return cudaSuccess;
}
EXPORTED cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = reinterpret_cast<cudaStream_t>(1);
  return cudaSuccess;
}
EXPORTED cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }
EXPORTED cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
EXPORTED cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
EXPORTED cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
EXPORTED cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = reinterpret_cast<cudaEvent_t>(1);
  return cudaSuccess;
}
EXPORTED cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return cudaEventCreate(event); }
EXPORTED cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
EXPORTED cudaError_t cudaEventRecordWithFlags(cudaEvent_t, cudaStream_t, unsigned) { return cudaSuccess; }
EXPORTED cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
EXPORTED cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
EXPORTED cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
EXPORTED cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  *milliseconds = 1;
  return cudaSuccess;
}
EXPORTED cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
EXPORTED cudaError_t cudaGetLastError() { return cudaSuccess; }
EXPORTED cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  std::memset(properties, 0, sizeof(*properties));
  std::strcpy(properties->name, "NVIDIA H200, not there");
  properties->major = 9;
  properties->multiProcessorCount = 132;
  properties->totalGlobalMem = 141000000000;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = 1024;
  properties->maxThreadsPerMultiProcessor = 2048;
  properties->sharedMemPerBlock = 49152;
  properties->sharedMemPerBlockOptin = 232448;
  properties->regsPerMultiprocessor = 65536;
  properties->l2CacheSize = 50 << 20;
  properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = 1024;
  properties->maxThreadsDim[2] = 64;
  properties->maxGridSize[0] = 2147483647;
  properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
  return cudaSuccess;
}
}
