/* A simulated NVML for tests: the functions of nvml.h that are called, for the devices in cards.h, which a test writes. */
#include <stdio.h>
#include <string.h>

typedef unsigned long long u64;

struct device {
    const char *name, *uuid;
    int handle_code, memory_code;
    u64 total, reserved, free;
    int major, minor, mig, slices;
    struct device *slice;
};

#include "cards.h"

#define OK 0
#define NOT_SUPPORTED 3
#define NOT_FOUND 6

static int initialised = 0;

int nvmlInit_v2(void) { initialised = INIT == OK; return INIT; }
int nvmlShutdown(void) { initialised = 0; return OK; }

const char *nvmlErrorString(int code) {
    return code == 15 ? "GPU is lost" : code == 18 ? "Driver/library version mismatch" : "Unknown Error";
}

static int text(const char *value, char *buffer, unsigned length) {
    if (!initialised) return 1;
    if (!value) return NOT_SUPPORTED;
    snprintf(buffer, length, "%s", value);
    return OK;
}

int nvmlSystemGetDriverVersion(char *buffer, unsigned length) { return text(DRIVER, buffer, length); }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = CUDA; return OK; }

int nvmlDeviceGetCount_v2(unsigned *count) { *count = COUNT; return initialised ? OK : 1; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct device **handle) {
    *handle = &cards[index];
    return cards[index].handle_code;
}

int nvmlDeviceGetName(struct device *d, char *buffer, unsigned length) { return text(d->name, buffer, length); }
int nvmlDeviceGetUUID(struct device *d, char *buffer, unsigned length) { return text(d->uuid, buffer, length); }

int nvmlDeviceGetCudaComputeCapability(struct device *d, int *major, int *minor) {
    *major = d->major;
    *minor = d->minor;
    return d->major ? OK : NOT_SUPPORTED;
}

int nvmlDeviceGetMigMode(struct device *d, unsigned *now, unsigned *after) {
    *now = *after = d->mig == 1;
    return d->mig < 0 ? NOT_SUPPORTED : OK;
}

int nvmlDeviceGetMaxMigDeviceCount(struct device *d, unsigned *count) { *count = 7; return OK; }

int nvmlDeviceGetMigDeviceHandleByIndex(struct device *d, unsigned index, struct device **handle) {
    if ((int)index >= d->slices) return NOT_FOUND;
    *handle = &d->slice[index];
    return OK;
}

struct memory { u64 total, free, used; };
struct memory_v2 { unsigned version; u64 total, reserved, free, used; };

int nvmlDeviceGetMemoryInfo(struct device *d, struct memory *m) {
    m->total = d->total;
    m->free = d->free;
    m->used = d->total - d->free;
    return d->memory_code;
}

#ifndef BEFORE_510
int nvmlDeviceGetMemoryInfo_v2(struct device *d, struct memory_v2 *m) {
    if (m->version != (sizeof(struct memory_v2) | 2 << 24)) return 25; /* NVML_ERROR_ARGUMENT_VERSION_MISMATCH */
    m->total = d->total;
    m->reserved = d->reserved;
    m->free = d->free;
    m->used = d->total - d->reserved - d->free;
    return d->memory_code;
}
#endif
