/* A libcuda.so.1 that has one GPU, whose memory is the host's and whose kernels do nothing. It checks what the
 * driver would check, and at the end writes what is left to the file that FAKE_REPORT names.
 *
 *   FAKE_VERSION    what cuDriverGetVersion says; default 13000
 *   FAKE_DEVICES    number of GPUs; default 1
 *   FAKE_CAPABILITY compute capability; default 90
 *   FAKE_MEMORY     bytes of memory; default 80 GiB
 *   FAKE_OOM_AT     the n-th allocation fails, counted from 1
 *   FAKE_NO_PINNED  no memory can be pinned
 *   FAKE_LOST_AT    the n-th launch is of a kernel that touches what it must not: its GPU is lost
 *   FAKE_LOST_COPY  its GPU is lost in the n-th copy from the host
 *   FAKE_INIT       what cuInit returns; default 0
 *
 * The file also has a line `kernel NAME COUNT` for every kernel that was launched, and `launches of priority N COUNT`.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int R;
typedef uint64_t P;
enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_IMAGE = 200,
       INVALID_CONTEXT = 201, NO_BINARY = 209, INVALID_HANDLE = 400, ILLEGAL_ADDRESS = 700 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long allocations, live_allocations, live_bytes;
static _Atomic long launches, contexts, streams, modules, pinned, pushed, wrong, recordings, replays, graphs;
static __thread void *stack[8];
static __thread int depth;
/* The thread records: what has to happen at once cannot. */
static __thread int recording;
static int lost[8];

static long setting(const char *name, long otherwise) {
    const char *value = getenv(name);
    return value ? atol(value) : otherwise;
}
/* A call that the driver would refuse is a bug, even when nobody looks at what it returns. */
static R refuse(R code) {
    wrong++;
    return code;
}
static int current(void) { return (int)(intptr_t)stack[depth - 1] - 40; }
/* Most functions need a current context. */
#define ENTER()                                              \
    do {                                                     \
        if (depth == 0) return refuse(INVALID_CONTEXT);      \
        if (lost[current()]) return ILLEGAL_ADDRESS;         \
    } while (0)

R cuInit(unsigned flags) { return flags ? INVALID_VALUE : (R)setting("FAKE_INIT", 0); }
R cuDriverGetVersion(int *v) { return *v = (int)setting("FAKE_VERSION", 13000), OK; }
R cuGetErrorName(unsigned code, const char **name) {
    *name = code == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : code == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS" : NULL;
    return *name ? OK : INVALID_VALUE;
}

R cuDeviceGetCount(int *n) { return *n = (int)setting("FAKE_DEVICES", 1), OK; }
R cuDeviceGet(int *device, int i) { return *device = i + 40, i < setting("FAKE_DEVICES", 1) ? OK : refuse(INVALID_DEVICE); }
R cuDeviceGetName(char *name, int cap, int device) { return snprintf(name, cap, "Fake GPU %d", device - 40), OK; }
R cuDeviceGetUuid_v2(char uuid[16], int device) { return memset(uuid, device, 16), OK; }
R cuDeviceGetLuid(char *luid, unsigned *mask, int device) { return (void)luid, (void)mask, (void)device, 801; }
R cuDeviceTotalMem_v2(size_t *bytes, int device) { return (void)device, *bytes = (size_t)setting("FAKE_MEMORY", 80L << 30), OK; }
R cuDeviceGetAttribute(int *value, int attribute, int device) {
    long capability = setting("FAKE_CAPABILITY", 90);
    (void)device;
    switch (attribute) {
        case 16: *value = 132; return OK;
        case 75: *value = (int)(capability / 10); return OK;
        case 76: *value = (int)(capability % 10); return OK;
        default: return refuse(INVALID_VALUE);
    }
}

R cuDevicePrimaryCtxRetain(void **context, int device) {
    contexts++;
    return *context = (void *)(intptr_t)device, OK;
}
R cuDevicePrimaryCtxRelease_v2(int device) { return (void)device, (void)contexts--, OK; }
R cuCtxPushCurrent_v2(void *context) {
    if (context == NULL || depth == 8) return refuse(INVALID_CONTEXT);
    stack[depth++] = context;
    pushed++;
    return OK;
}
R cuCtxPopCurrent_v2(void **context) {
    if (depth == 0) return refuse(INVALID_CONTEXT);
    *context = stack[--depth];
    pushed--;
    return OK;
}
R cuCtxGetCurrent(void **context) { return *context = depth ? stack[depth - 1] : NULL, OK; }
R cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    ENTER();
    return *least = 0, *greatest = -5, OK;
}

/* A stream records, or does what it is asked for at once; a graph holds the launches that were recorded. */
typedef struct { int records, priority; long launches; } Stream;
/* Launches by the priority of the stream to which they were sent, 0 to -5. */
static _Atomic long by_priority[6];
R cuStreamCreateWithPriority(Stream **stream, unsigned flags, int priority) {
    ENTER();
    if (flags != 1 || priority > 0 || priority < -5) return refuse(INVALID_VALUE);
    *stream = calloc(1, sizeof(Stream));
    return (void)streams++, (*stream)->priority = priority, OK;
}
R cuStreamDestroy_v2(Stream *stream) { return free(stream), (void)streams--, OK; }
R cuStreamSynchronize(Stream *stream) {
    ENTER();
    return stream && !recording ? OK : refuse(INVALID_HANDLE);
}
R cuStreamBeginCapture_v2(Stream *stream, int mode) {
    ENTER();
    if (!stream || stream->records || recording || mode != 1) return refuse(INVALID_VALUE);
    stream->records = recording = 1;
    return (void)recordings++, OK;
}
R cuStreamEndCapture(Stream *stream, long **graph) {
    ENTER();
    if (!stream || !stream->records || !recording) return refuse(INVALID_VALUE);
    stream->records = recording = 0;
    *graph = malloc(sizeof(long));
    return (void)graphs++, **graph = stream->launches, OK;
}
R cuGraphInstantiateWithFlags(long **executable, long *graph, uint64_t flags) {
    ENTER();
    if (!graph || flags) return refuse(INVALID_VALUE);
    *executable = malloc(sizeof(long));
    return (void)graphs++, **executable = *graph, OK;
}
R cuGraphLaunch(long *executable, Stream *stream) {
    ENTER();
    if (!executable || !stream || stream->records || recording) return refuse(INVALID_VALUE);
    by_priority[-stream->priority] += *executable;
    return (void)replays++, (void)(launches += *executable), OK;
}
R cuGraphExecDestroy(long *executable) { return free(executable), (void)graphs--, OK; }
R cuGraphDestroy(long *graph) { return free(graph), (void)graphs--, OK; }

/* An event is a moment; time goes by as events are recorded. */
typedef struct { long at; } Event;
static _Atomic long events, moments;
R cuEventCreate(Event **event, unsigned flags) {
    ENTER();
    if (flags & ~3u) return refuse(INVALID_VALUE);
    return (void)events++, *event = calloc(1, sizeof(Event)), OK;
}
R cuEventRecord(Event *event, Stream *stream) {
    ENTER();
    if (!event || !stream || stream->records) return refuse(INVALID_VALUE);
    event->at = ++moments;
    return OK;
}
R cuEventSynchronize(Event *event) {
    ENTER();
    return event ? OK : refuse(INVALID_HANDLE);
}
R cuEventElapsedTime(float *milliseconds, Event *from, Event *to) {
    ENTER();
    if (!from || !to || !from->at || to->at < from->at) return refuse(INVALID_VALUE);
    *milliseconds = (float)(to->at - from->at);
    return OK;
}
R cuEventDestroy_v2(Event *event) { return free(event), (void)events--, OK; }

/* Every allocation, to check copies against. */
static struct { P at; size_t bytes; } blocks[4096];
static R inside(P at, size_t bytes) {
    R found = INVALID_VALUE;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < 4096; i++)
        if (blocks[i].at && at >= blocks[i].at && at + bytes <= blocks[i].at + blocks[i].bytes) found = OK;
    pthread_mutex_unlock(&lock);
    return found ? refuse(found) : OK;
}
R cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    ENTER();
    *total = (size_t)setting("FAKE_MEMORY", 80L << 30);
    return *free_bytes = *total - (size_t)live_bytes, OK;
}
R cuMemAlloc_v2(P *at, size_t bytes) {
    ENTER();
    if (recording) return refuse(INVALID_VALUE);
    pthread_mutex_lock(&lock);
    int i = 0;
    while (blocks[i].at) i++;
    int full = live_bytes + (long)bytes > setting("FAKE_MEMORY", 80L << 30);
    R result = ++allocations == setting("FAKE_OOM_AT", 0) || full ? OUT_OF_MEMORY : OK;
    if (result == OK) {
        *at = blocks[i].at = (P)(uintptr_t)aligned_alloc(256, bytes);
        blocks[i].bytes = bytes;
        live_allocations++, live_bytes += bytes;
        memset((void *)(uintptr_t)*at, 0, bytes);
    }
    pthread_mutex_unlock(&lock);
    return result;
}
R cuMemFree_v2(P at) {
    R result = INVALID_VALUE;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < 4096 && at; i++) {
        if (blocks[i].at != at) continue;
        live_allocations--, live_bytes -= blocks[i].bytes;
        free((void *)(uintptr_t)at);
        blocks[i].at = 0;
        result = OK;
    }
    pthread_mutex_unlock(&lock);
    return result ? refuse(result) : OK;
}
R cuMemHostAlloc(void **at, size_t bytes, unsigned flags) {
    ENTER();
    if (flags || setting("FAKE_NO_PINNED", 0)) return flags ? refuse(INVALID_VALUE) : OUT_OF_MEMORY;
    return (void)pinned++, *at = malloc(bytes), OK;
}
R cuMemFreeHost(void *at) { return free(at), (void)pinned--, OK; }
R cuMemcpyHtoDAsync_v2(P to, const void *from, size_t bytes, void *stream) {
    ENTER();
    static _Atomic long copies;
    if (!stream || recording || inside(to, bytes)) return refuse(INVALID_VALUE);
    if (++copies == setting("FAKE_LOST_COPY", 0)) return (void)(lost[current()] = 1), ILLEGAL_ADDRESS;
    return memcpy((void *)(uintptr_t)to, from, bytes), OK;
}
R cuMemcpyDtoHAsync_v2(void *to, P from, size_t bytes, void *stream) {
    ENTER();
    if (!stream || recording || inside(from, bytes)) return refuse(INVALID_VALUE);
    return memcpy(to, (void *)(uintptr_t)from, bytes), OK;
}
R cuMemsetD8Async(P at, unsigned char value, size_t bytes, void *stream) {
    ENTER();
    if (!stream || inside(at, bytes)) return refuse(INVALID_VALUE);
    return memset((void *)(uintptr_t)at, value, bytes), OK;
}

/* What a block may have of shared memory. */
static unsigned shared_memory(void) {
    switch (setting("FAKE_CAPABILITY", 90)) {
        case 75: return 65536;
        case 80: case 87: return 166912;
        case 90: case 100: case 103: case 110: return 232448;
        default: return 101376;
    }
}
/* Whether a fatbin has code for the GPU: machine code of its generation that is not too new, or PTX that is not. */
static int has_code(const unsigned char *image) {
    const unsigned capability = (unsigned)setting("FAKE_CAPABILITY", 90);
    uint16_t header_bytes;
    uint64_t bytes, entry_bytes;
    memcpy(&header_bytes, image + 6, 2), memcpy(&bytes, image + 8, 8);
    for (const unsigned char *entry = image + header_bytes, *end = entry + bytes; entry < end; entry += entry_bytes) {
        uint16_t kind;
        uint32_t entry_header, arch;
        memcpy(&kind, entry, 2), memcpy(&entry_header, entry + 4, 4);
        memcpy(&entry_bytes, entry + 8, 8), memcpy(&arch, entry + 28, 4);
        if (arch <= capability && (kind == 1 || arch / 10 == capability / 10)) return 1;
        entry_bytes += entry_header;
    }
    return 0;
}
R cuModuleLoadData(void **module, const void *image) {
    ENTER();
    uint32_t magic;
    memcpy(&magic, image, 4);
    if (magic != 0xba55ed50u) return refuse(INVALID_IMAGE);
    if (!has_code(image)) return NO_BINARY;
    return (void)modules++, *module = malloc(1), OK;
}
R cuModuleUnload(void *module) { return free(module), (void)modules--, OK; }
R cuModuleGetFunction(void **function, void *module, const char *name) {
    ENTER();
    return *function = (void *)name, module ? OK : refuse(INVALID_HANDLE);
}
R cuFuncSetAttribute(void *function, int attribute, int value) {
    ENTER();
    return function && attribute == 8 && value >= 0 && (unsigned)value <= shared_memory() ? OK : refuse(INVALID_VALUE);
}
/* By name, which is what functions are. */
static struct { const char *name; long launches; } kernels[256];
R cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                 unsigned shared, Stream *stream, void **params, void **extra) {
    ENTER();
    if (!function || !stream || !params || extra || shared > shared_memory()) return refuse(INVALID_VALUE);
    if (!gx || !gy || !gz || gy > 65535 || gz > 65535 || bx * by * bz == 0 || bx * by * bz > 1024) return refuse(INVALID_VALUE);
    if (stream->records) return (void)stream->launches++, OK;
    by_priority[-stream->priority]++;
    if (++launches == setting("FAKE_LOST_AT", 0)) lost[current()] = 1;
    pthread_mutex_lock(&lock);
    int i = 0;
    while (kernels[i].name && strcmp(kernels[i].name, function)) i++;
    kernels[i].name = function, kernels[i].launches++;
    pthread_mutex_unlock(&lock);
    return OK;
}
R cuTensorMapEncodeTiled(void *map, int type, unsigned rank, void *base, const uint64_t *sizes, const uint64_t *strides,
                         const uint32_t *box, const uint32_t *steps, int interleave, int swizzle, int promotion, int fill) {
    ENTER();
    (void)promotion, (void)fill, (void)steps;
    unsigned bytes = type == 9 ? 2 : type == 7 ? 4 : 1;
    if ((uintptr_t)map % 64 || rank < 2 || rank > 3 || (uintptr_t)base % 16 || interleave) return refuse(INVALID_VALUE);
    for (unsigned i = 0; i < rank; i++)
        if (!sizes[i] || !box[i] || box[i] > 256 || (i && strides[i - 1] % 16)) return refuse(INVALID_VALUE);
    /* Boxes of 128 bytes a row, swizzled over all of it; scales lie as they are. */
    if (type == 7 ? swizzle || box[0] * bytes % 16 : box[0] * bytes != 128 || swizzle != 3) return refuse(INVALID_VALUE);
    return inside((P)(uintptr_t)base, strides[rank - 2] * sizes[rank - 1]) ? INVALID_VALUE : OK;
}

__attribute__((destructor)) static void report(void) {
    const char *path = getenv("FAKE_REPORT");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (!file) return;
    fprintf(file, "allocations %ld\nlaunches %ld\nlive_allocations %ld\nlive_bytes %ld\ncontexts %ld\nstreams %ld\nmodules %ld\npinned %ld\nevents %ld\npushed %ld\nwrong %ld\nrecordings %ld\nreplays %ld\ngraphs %ld\n",
            allocations, launches, live_allocations, live_bytes, contexts, streams, modules, pinned, events, pushed, wrong, recordings, replays, graphs);
    for (int i = 0; i < 6; i++) fprintf(file, "launches of priority %d %ld\n", -i, by_priority[i]);
    for (int i = 0; kernels[i].name; i++) fprintf(file, "kernel %s %ld\n", kernels[i].name, kernels[i].launches);
    fclose(file);
}
