/* A stand-in for NVIDIA's management library, for tests on machines without a GPU. It has three devices: one that
 * tells everything, one that does not tell its load, and one that is lost. Built with NO_DRIVER it fails to
 * start, with NO_DEVICE it has none. */

#include <stdint.h>
#include <string.h>

enum { OK = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15 };

struct device { unsigned index; };
struct memory { unsigned version; uint64_t total, reserved, free, used; };
struct load { unsigned gpu, memory; };

static struct device devices[3] = {{0}, {1}, {2}};

int nvmlInit_v2(void) {
#ifdef NO_DRIVER
    return DRIVER_NOT_LOADED;
#else
    return OK;
#endif
}

int nvmlShutdown(void) { return OK; }

static int say(const char *text, char *into, unsigned length) {
    strncpy(into, text, length);
    return OK;
}

int nvmlSystemGetDriverVersion(char *version, unsigned length) { return say("999.1", version, length); }

int nvmlDeviceGetCount_v2(unsigned *count) {
#ifdef NO_DEVICE
    *count = 0;
#else
    *count = 3;
#endif
    return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct device **device) {
    if (index >= 3) return INVALID_ARGUMENT;
    *device = &devices[index];
    return OK;
}

int nvmlDeviceGetName(struct device *device, char *name, unsigned length) {
    return device->index == 2 ? GPU_IS_LOST : say("Stand-in 9000", name, length);
}

int nvmlDeviceGetUUID(struct device *device, char *uuid, unsigned length) {
    if (device->index == 2) return GPU_IS_LOST;
    return say(device->index == 0 ? "GPU-stand-in-0" : "GPU-stand-in-1", uuid, length);
}

int nvmlDeviceGetMemoryInfo_v2(struct device *device, struct memory *memory) {
    if (device->index == 2) return GPU_IS_LOST;
    memory->total = 16ull << 30;
    memory->reserved = 0;
    memory->used = 5ull << 30;
    memory->free = memory->total - memory->used;
    return OK;
}

int nvmlDeviceGetUtilizationRates(struct device *device, struct load *load) {
    if (device->index == 2) return GPU_IS_LOST;
    if (device->index == 1) return NOT_SUPPORTED;
    load->gpu = 37;
    load->memory = 12;
    return OK;
}
