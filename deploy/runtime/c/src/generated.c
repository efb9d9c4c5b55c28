/* A bundle's library.so: code that TVM generated, without TVM. It calls its runtime through pointers that it defines
 * itself and whoever loads it sets. */
#include <dlfcn.h>
#include <string.h>

#include "internal.h"

int kerf_parallel_launch(task job, void *data, int tasks);
int kerf_parallel_barrier(int id, void *group);
void *kerf_alloc_workspace(int device, int id, uint64_t bytes, int code, int bits);
int kerf_free_workspace(int device, int id, void *data);

typedef void (*anything)(void);
static const struct {
  const char *symbol;
  anything is;
} RUNTIME[] = {
    {"__TVMBackendParallelLaunch", (anything)kerf_parallel_launch},
    {"__TVMBackendParallelBarrier", (anything)kerf_parallel_barrier},
    {"__TVMBackendAllocWorkspace", (anything)kerf_alloc_workspace},
    {"__TVMBackendFreeWorkspace", (anything)kerf_free_workspace},
};

struct generated {
  void *handle;
  const char *path;
};

/* Into the reach of libraries that are loaded after it, however libkerf itself was loaded. */
static void show_errors_function(void) {
  Dl_info where;
  if (dladdr((void *)(uintptr_t)kerf_open, &where) && where.dli_fname) {
    void *self = dlopen(where.dli_fname, RTLD_LAZY | RTLD_GLOBAL | RTLD_NOLOAD);
    if (self) dlclose(self); /* it stays loaded, and seen */
  }
}

kerf_status load_generated(memory *own, const char *path, generated **found) {
  generated *made = take(own, sizeof *made);
  if (!made) return failed(KERF_NO_MEMORY, "no memory");
  show_errors_function();
  made->path = path;
  made->handle = dlopen(path, RTLD_LAZY | RTLD_LOCAL);
  if (!made->handle)
    return failed(KERF_NO_BUNDLE, "its library cannot be loaded (%s); is it on a file system mounted noexec?", dlerror());
  for (size_t i = 0; i < LENGTH(RUNTIME); i++) {
    anything *pointer = (anything *)dlsym(made->handle, RUNTIME[i].symbol);
    /* TVM itself may have loaded the library in this process: then its runtime serves both */
    if (pointer && !*pointer) *pointer = RUNTIME[i].is;
  }
  *found = made;
  /* through this one a function calls others of TVM's runtime by their names */
  anything *by_name = (anything *)dlsym(made->handle, "__TVMFFIEnvModLookupFromImports");
  return by_name && !*by_name ? failed(KERF_UNSUPPORTED, "%s: calls functions of TVM's runtime (sorting, say), which "
                                       "libkerf lacks", path) : KERF_OK;
}

void unload_generated(generated *library) {
  if (library && library->handle) dlclose(library->handle);
}

function find_function(generated *library, const char *name) {
  void *symbol = dlsym(library->handle, name);
  function found = NULL;
  memcpy(&found, &symbol, sizeof found);
  return found;
}

/* DLPack's codes of kinds of numbers. */
static const struct {
  uint8_t code, bits;
} KINDS[] = {
    [KERF_FLOAT32] = {2, 32},      [KERF_UINT8] = {1, 8},        [KERF_INT8] = {0, 8},
    [KERF_UINT16] = {1, 16},       [KERF_INT16] = {0, 16},       [KERF_INT32] = {0, 32},
    [KERF_INT64] = {0, 64},        [KERF_BOOL] = {6, 8},         [KERF_FLOAT16] = {2, 16},
    [KERF_FLOAT64] = {2, 64},      [KERF_UINT32] = {1, 32},      [KERF_UINT64] = {1, 64},
    [KERF_BFLOAT16] = {4, 16},     [KERF_FLOAT8E4M3FN] = {10, 8}, [KERF_FLOAT8E4M3FNUZ] = {11, 8},
    [KERF_FLOAT8E5M2] = {12, 8},   [KERF_FLOAT8E5M2FNUZ] = {13, 8},
};

kerf_status describe(memory *own, kerf_tensor tensor, dl_tensor *described) {
  if (!size_of(tensor.type) || tensor.rank < 0) return failed(KERF_UNSUPPORTED, "a tensor of a type that C lacks");
  int64_t *strides = take_many(own, (size_t)tensor.rank, sizeof *strides), step = 1;
  if (!strides) return failed(KERF_NO_MEMORY, "no memory");
  for (int32_t i = tensor.rank - 1; i >= 0; i--) {
    strides[i] = step;
    step *= tensor.shape[i];
  }
  *described = (dl_tensor){.rank = tensor.rank, .strides = strides, .shape = (int64_t *)(uintptr_t)tensor.shape};
  described->device.type = 1; /* a CPU */
  described->type.code = KINDS[tensor.type].code;
  described->type.bits = KINDS[tensor.type].bits;
  described->type.lanes = 1;
  return KERF_OK;
}
