/* A CUDA driver whose one device is the host's memory: it has what fastpose/ops/cubin.py calls, and
   what fastpose/engines/memory.py makes the true pycuda and cuda-bindings call.

   It counts what is left over, and keeps what a launch was given. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PUSHED, RETAINED, DEVICE, HOST, STREAMS, COPIES, OUTSIDE, COUNTERS };
int counters[COUNTERS];
uint64_t seen[64]; /* the last launch; 60 and on: attribute and its value, the module unloaded */
char kernel[64];   /* the name that was asked for */

static void* const CONTEXT = (void*)0x51;
static void* const STREAM = (void*)0x52;
static void* const MODULE = (void*)0x123456789abcull;
static void* const FUNCTION = (void*)0xfedcba987654ull;

/* Counts a call that needs a current context and has none. */
static int inside(void) {
  counters[OUTSIDE] += counters[PUSHED] == 0;
  return 0;
}

static int allocate(void** place, size_t size, int which) {
  inside();
  if (size > (1ull << 40)) return 2;
  *place = malloc(size);
  counters[which]++;
  return 0;
}

static int release(void* place, int which) {
  inside();
  free(place);
  counters[which]--;
  return 0;
}

static int copy(void* to, const void* from, size_t size, void* stream) {
  inside();
  memcpy(to, from, size);
  counters[COPIES]++;
  return stream == STREAM ? 0 : 400;
}

int cuInit(unsigned flags) { return flags; }
int cuDriverGetVersion(int* version) { return *version = 12040, 0; }
int cuGetErrorString(int status, const char** text) {
  *text = status == 2 ? "out of memory" : "an error";
  return 0;
}
int cuGetErrorName(int status, const char** text) {
  *text = status == 209 ? "CUDA_ERROR_NO_BINARY_FOR_GPU" : NULL;
  return 0;
}
int cuDeviceGetCount(int* count) { return *count = 1, 0; }
int cuDeviceGet(int* device, int index) { return *device = index, 0; }
int cuDeviceGetName(char* name, int length, int device) {
  snprintf(name, length, "a host");
  return device;
}
int cuDeviceComputeCapability(int* major, int* minor, int device) {
  *major = 9, *minor = 0;
  return device;
}
int cuDeviceGetAttribute(int* value, int kind, int device) {
  *value = kind == 75 ? 9 : 0;
  return device;
}
int cuDevicePrimaryCtxRetain(void** context, int device) {
  *context = CONTEXT;
  counters[RETAINED]++;
  return device;
}
int cuDevicePrimaryCtxRelease_v2(int device) { return counters[RETAINED]--, device; }
int cuCtxPushCurrent_v2(void* context) {
  counters[PUSHED]++;
  return context == CONTEXT && counters[RETAINED] > 0 ? 0 : 201;
}
int cuCtxPopCurrent_v2(void** context) {
  *context = CONTEXT;
  return counters[PUSHED]-- > 0 ? 0 : 201;
}
int cuStreamCreate(void** stream, unsigned flags) {
  *stream = STREAM;
  counters[STREAMS]++;
  return inside() + flags;
}
int cuStreamDestroy_v2(void* stream) { return counters[STREAMS]--, inside(), stream != STREAM; }
int cuStreamSynchronize(void* stream) { return inside(), stream != STREAM; }
int cuMemAlloc_v2(uint64_t* place, size_t size) { return allocate((void**)place, size, DEVICE); }
int cuMemFree_v2(uint64_t place) { return release((void*)place, DEVICE); }
int cuMemHostAlloc(void** place, size_t size, unsigned flags) {
  return allocate(place, size, HOST) + flags;
}
int cuMemFreeHost(void* place) { return release(place, HOST); }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t size, void* stream) {
  return copy((void*)to, from, size, stream);
}
int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t size, void* stream) {
  return copy(to, (const void*)from, size, stream);
}

int cuModuleLoadData(void** module, const void* image) {
  *module = MODULE;
  return memcmp(image,
                "\x7f"
                "ELF",
                4)
             ? 209
             : 0;
}
int cuModuleUnload(void* module) { return seen[62] = (uintptr_t)module, 0; }
int cuModuleGetFunction(void** function, void* module, const char* name) {
  strncpy(kernel, name, sizeof kernel - 1);
  *function = FUNCTION;
  return module != MODULE;
}
int cuFuncSetAttribute(void* function, int attribute, int value) {
  seen[60] = attribute, seen[61] = value;
  return function != FUNCTION;
}

/* Of a kernel that takes five pointers and three integers. */
int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void* stream, void** values, void** extra) {
  const uint64_t given[] = {gx, gy, gz, bx, by, bz, shared, (uintptr_t)stream, (uintptr_t)extra};
  memcpy(seen, given, sizeof given);
  for (int i = 0; i < 5; ++i) seen[10 + i] = *(const uint64_t*)values[i];
  for (int i = 5; i < 8; ++i) seen[10 + i] = *(const int32_t*)values[i];
  return function != FUNCTION;
}

/* How cuda-bindings find the functions: by their names without a version. */
#define ENTRY(name) {#name, (void*)name}
#define ENTRY_2(name) {#name, (void*)name##_v2}
static const struct {
  const char* name;
  void* function;
} TABLE[] = {
    ENTRY(cuInit),
    ENTRY(cuDriverGetVersion),
    ENTRY(cuGetErrorString),
    ENTRY(cuGetErrorName),
    ENTRY(cuDeviceGetCount),
    ENTRY(cuDeviceGet),
    ENTRY(cuDeviceGetName),
    ENTRY(cuDeviceGetAttribute),
    ENTRY(cuDevicePrimaryCtxRetain),
    ENTRY_2(cuDevicePrimaryCtxRelease),
    ENTRY_2(cuCtxPushCurrent),
    ENTRY_2(cuCtxPopCurrent),
    ENTRY(cuStreamCreate),
    ENTRY_2(cuStreamDestroy),
    ENTRY(cuStreamSynchronize),
    ENTRY_2(cuMemAlloc),
    ENTRY_2(cuMemFree),
    ENTRY(cuMemHostAlloc),
    ENTRY(cuMemFreeHost),
    ENTRY_2(cuMemcpyHtoDAsync),
    ENTRY_2(cuMemcpyDtoHAsync),
};

int cuGetProcAddress_v2(const char* name, void** function, int version, uint64_t flags,
                        int* status) {
  (void)version, (void)flags;
  *function = NULL;
  for (size_t i = 0; i < sizeof TABLE / sizeof *TABLE; ++i)
    if (strcmp(name, TABLE[i].name) == 0) *function = TABLE[i].function;
  if (status) *status = *function ? 0 : 1;
  return *function ? 0 : 500;
}
