/* Pieces that ONNX Runtime runs, by its C API, loaded when a bundle has such pieces. Its header is in no registry package:
 * the few entries used are called by their places in its table, to which later versions only append. */
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#define VERSION 1 /* of the API: all entries used are of its first */

enum {
  GET_MESSAGE = 2, CREATE_ENV = 3, DISABLE_TELEMETRY = 6, CREATE_SESSION = 7, RUN = 9, CREATE_OPTIONS = 10, SET_INTRA_THREADS = 24,
  SET_INTER_THREADS = 25, CREATE_TENSOR_WITH_DATA = 49, GET_TENSOR_DATA = 51, GET_ELEMENT_TYPE = 60, GET_RANK = 61,
  GET_SIZES = 62, GET_TYPE_AND_SHAPE = 65, CREATE_CPU_MEMORY = 69, RELEASE_ENV = 92, RELEASE_STATUS = 93,
  RELEASE_MEMORY = 94, RELEASE_SESSION = 95, RELEASE_VALUE = 96, RELEASE_TYPE_AND_SHAPE = 99, RELEASE_OPTIONS = 100
};

typedef struct Status Status;
typedef void (*entry)(void);
typedef struct {
  const void *(*api)(uint32_t version);
  const char *(*version)(void);
} base; /* OrtApiBase */
#define CALL(of, index, ...) ((Status * (*)(__VA_ARGS__))(of)->table[index])
#define FREE(of, index, what) ((void (*)(void *))(of)->table[index])(what)

struct engine {
  memory own;
  const entry *table;
  void *env, *options, *cpu;
};

typedef struct {
  const cell *in;
  uint32_t value;
  void *tensor; /* an OrtValue over the memory at `at` */
  const void *at;
  kerf_tensor is;
  int64_t offset;
} bound;

struct piece {
  engine *of;
  void *session;
  uint32_t inputs, outputs;
  bound *input, *output;
  const char **input_name, **output_name;
  void **given, **found;
  int64_t *shape; /* of the result that was asked for last */
};

static kerf_status refused(const engine *of, Status *status, kerf_status code, const char *what) {
  if (!status) return KERF_OK;
  const char *text = ((const char *(*)(const Status *))of->table[GET_MESSAGE])(status);
  failed(code, "%s: ONNX Runtime: %s", what, text);
  FREE(of, RELEASE_STATUS, status);
  return code;
}

static void *library(const char *path) {
#ifdef __APPLE__
  static const char *const NAMES[] = {"libonnxruntime.dylib"};
#else
  static const char *const NAMES[] = {"libonnxruntime.so.1", "libonnxruntime.so"};
#endif
  if (path) return dlopen(path, RTLD_NOW | RTLD_LOCAL);
  for (size_t i = 0; i < LENGTH(NAMES); i++) {
    void *found = dlopen(NAMES[i], RTLD_NOW | RTLD_LOCAL);
    if (found) return found;
  }
  return NULL;
}

kerf_status open_engine(const char *path, int threads, bool alone, engine **found) {
  memory own = {NULL};
  engine *made = take(&own, sizeof *made);
  if (!made) return failed(KERF_NO_MEMORY, "no memory");
  (void)alone;
  *found = made;
  made->own = own;
  void *handle = library(path); /* never unloaded: it has threads of its own */
  void *symbol = handle ? dlsym(handle, "OrtGetApiBase") : NULL;
  if (!symbol)
    return failed(KERF_NO_ENGINE, "pieces of this bundle run in ONNX Runtime, which is not there (%s); name its library, or "
                  "set KERF_ONNXRUNTIME", handle ? "no OrtGetApiBase" : dlerror());
  const base *(*get)(void) = NULL;
  memcpy(&get, &symbol, sizeof get);
  made->table = get()->api(VERSION);
  if (!made->table) return failed(KERF_NO_ENGINE, "ONNX Runtime %s has no API of version %d", get()->version(), VERSION);
  kerf_status status = refused(made, CALL(made, CREATE_ENV, int, const char *, void **)(3, "kerf", &made->env), KERF_NO_ENGINE, "env");
  /* which networks run here is told to nobody; the environment is not changed for that, since other threads read it */
  const char *tells = getenv("ORT_DISABLE_TELEMETRY");
  if (!status && !(tells && !strcmp(tells, "0")))
    status = refused(made, CALL(made, DISABLE_TELEMETRY, const void *)(made->env), KERF_NO_ENGINE, "telemetry");
  if (!status) status = refused(made, CALL(made, CREATE_OPTIONS, void **)(&made->options), KERF_NO_ENGINE, "options");
  if (!status) status = refused(made, CALL(made, SET_INTRA_THREADS, void *, int)(made->options, threads), KERF_NO_ENGINE, "threads");
  if (!status) status = refused(made, CALL(made, SET_INTER_THREADS, void *, int)(made->options, 1), KERF_NO_ENGINE, "threads");
  if (!status) status = refused(made, CALL(made, CREATE_CPU_MEMORY, int, int, void **)(0, 0, &made->cpu), KERF_NO_ENGINE, "memory");
  return status;
}

void close_engine(engine *of) {
  if (!of) return;
  if (of->cpu) FREE(of, RELEASE_MEMORY, of->cpu);
  if (of->options) FREE(of, RELEASE_OPTIONS, of->options);
  if (of->env) FREE(of, RELEASE_ENV, of->env);
  memory own = of->own;
  release(&own);
}

static bool bind_all(memory *own, const numbers *which, const kerf_tensor *values, const place *places, bound **to,
                     const char ***names, void ***pointers) {
  *to = take_many(own, which->count, sizeof **to);
  *names = take_many(own, which->count, sizeof **names);
  *pointers = take_many(own, which->count, sizeof **pointers);
  if (!*to || !*names || !*pointers) return false;
  for (uint32_t i = 0; i < which->count; i++) {
    uint32_t v = which->at[i];
    (*to)[i] = (bound){places[v].in, v, NULL, NULL, values[v], places[v].offset};
    (*names)[i] = values[v].name;
  }
  return true;
}

kerf_status open_piece(engine *of, memory *own, const char *path, const step *what, const kerf_tensor *values,
                       const place *places, piece **made) {
  piece *p = take(own, sizeof *p);
  if (!p) return failed(KERF_NO_MEMORY, "no memory");
  *made = p;
  p->of = of;
  p->inputs = what->inputs.count;
  p->outputs = what->outputs.count;
  p->shape = take_many(own, 64, sizeof *p->shape);
  if (!p->shape || !bind_all(own, &what->inputs, values, places, &p->input, &p->input_name, &p->given) ||
      !bind_all(own, &what->outputs, values, places, &p->output, &p->output_name, &p->found))
    return failed(KERF_NO_MEMORY, "no memory");
  Status *status = CALL(of, CREATE_SESSION, void *, const char *, void *, void **)(of->env, path, of->options, &p->session);
  return refused(of, status, KERF_NO_ENGINE, path);
}

/* The OrtValue over the memory where the tensor lies now. */
static kerf_status value_of(const engine *of, bound *b, void **value) {
  void *data = (char *)b->in->data + b->offset;
  if (!b->tensor || b->at != data) {
    if (b->tensor) FREE(of, RELEASE_VALUE, b->tensor);
    b->tensor = NULL;
    Status *status = CALL(of, CREATE_TENSOR_WITH_DATA, void *, void *, size_t, const int64_t *, size_t, int, void **)(
        of->cpu, data, kerf_bytes(b->is), b->is.shape, (size_t)b->is.rank, (int)b->is.type, &b->tensor);
    if (status) return refused(of, status, KERF_RUN_FAILED, b->is.name);
    b->at = data;
  }
  *value = b->tensor;
  return KERF_OK;
}

static void forget(piece *p) {
  for (uint32_t i = 0; i < p->outputs; i++)
    if (!p->output[i].in && p->found[i]) {
      FREE(p->of, RELEASE_VALUE, p->found[i]);
      p->found[i] = NULL;
    }
}

static void *found_value(piece *p, uint32_t value) {
  for (uint32_t i = 0; p && i < p->outputs; i++)
    if (p->output[i].value == value) return p->found[i];
  return NULL;
}

kerf_status run_piece(piece *p, piece *const *makers) {
  forget(p);
  for (uint32_t i = 0; i < p->inputs; i++) {
    bound *b = &p->input[i];
    if (!b->in)
      p->given[i] = found_value(makers[b->value], b->value);
    else {
      kerf_status status = value_of(p->of, b, &p->given[i]);
      if (status) return status;
    }
    if (!p->given[i]) return failed(KERF_BAD_BUNDLE, "nothing computes '%s'", b->is.name);
  }
  for (uint32_t i = 0; i < p->outputs; i++) {
    kerf_status status = p->output[i].in ? value_of(p->of, &p->output[i], &p->found[i]) : KERF_OK;
    if (status) return status;
  }
  Status *status = CALL(p->of, RUN, void *, const void *, const char *const *, const void *const *, size_t, const char *const *,
                        size_t, void **)(p->session, NULL, p->input_name, (const void *const *)p->given, p->inputs,
                                         p->output_name, p->outputs, p->found);
  return refused(p->of, status, KERF_RUN_FAILED, "a piece");
}

kerf_status found_by(piece *p, uint32_t value, const void **data, kerf_tensor *tensor) {
  void *found = found_value(p, value), *about = NULL, *at = NULL;
  size_t rank = 0;
  int type = 0;
  if (!found) return failed(KERF_BAD_BUNDLE, "nothing computes '%s'", tensor->name);
  const engine *of = p->of;
  Status *status = CALL(of, GET_TYPE_AND_SHAPE, const void *, void **)(found, &about);
  if (!status) status = CALL(of, GET_ELEMENT_TYPE, const void *, int *)(about, &type);
  if (!status) status = CALL(of, GET_RANK, const void *, size_t *)(about, &rank);
  if (!status && rank <= 64) status = CALL(of, GET_SIZES, const void *, int64_t *, size_t)(about, p->shape, rank);
  if (!status) status = CALL(of, GET_TENSOR_DATA, void *, void **)(found, &at);
  if (about) FREE(of, RELEASE_TYPE_AND_SHAPE, about);
  if (status) return refused(of, status, KERF_RUN_FAILED, tensor->name);
  *tensor = (kerf_tensor){tensor->name, (kerf_type)type, (int32_t)rank, p->shape};
  *data = at;
  return KERF_OK;
}

void close_piece(piece *p) {
  if (!p) return;
  forget(p);
  for (uint32_t i = 0; p->input && i < p->inputs; i++)
    if (p->input[i].tensor) FREE(p->of, RELEASE_VALUE, p->input[i].tensor);
  for (uint32_t i = 0; p->output && i < p->outputs; i++)
    if (p->output[i].tensor) FREE(p->of, RELEASE_VALUE, p->output[i].tensor);
  if (p->session) FREE(p->of, RELEASE_SESSION, p->session);
}
