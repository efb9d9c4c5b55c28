/* kerf's pieces as custom operators of ONNX Runtime: libkerf_ops.so lies in a bundle's folder, beside a model.onnx whose
 * nodes Piece0, Piece1 … are the steps of its first plan. The domain of the operators holds the hash of program.bin, so a
 * model is never run with another bundle's pieces. Entries of ONNX Runtime's table are called as in onnxruntime.c. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#define VERSION 16 /* of the API: operators whose kernels return a status */

enum {
  CREATE_STATUS = 0, CREATE_DOMAIN = 26, DOMAIN_ADD = 27, ADD_DOMAIN = 28, GET_TENSOR_DATA = 51, GET_COUNT = 64,
  GET_TYPE_AND_SHAPE = 65, CONTEXT_INPUT = 90, CONTEXT_OUTPUT = 91, RELEASE_TYPE_AND_SHAPE = 99
};

typedef struct Status Status;
typedef void (*entry)(void);
typedef struct {
  const entry *(*api)(uint32_t version);
  const char *(*version)(void);
} base; /* OrtApiBase */
#define CALL(index, ...) ((Status * (*)(__VA_ARGS__)) table[index])

typedef struct custom custom;
struct custom { /* OrtCustomOp, as far as version 16 */
  uint32_t version;
  entry create;
  const char *(*name)(const custom *);
  const char *(*provider)(const custom *);
  int (*input_type)(const custom *, size_t);
  size_t (*inputs)(const custom *);
  int (*output_type)(const custom *, size_t);
  size_t (*outputs)(const custom *);
  entry compute;
  void (*destroy)(void *);
  int (*input_kind)(const custom *, size_t);
  int (*output_kind)(const custom *, size_t);
  int (*input_memory)(const custom *, size_t);
  int (*least_inputs)(const custom *), (*inputs_alike)(const custom *);
  int (*least_outputs)(const custom *), (*outputs_alike)(const custom *);
  Status *(*create_v2)(const custom *, const entry *, const void *, void **);
  Status *(*compute_v2)(void *, void *);
};

typedef struct {
  custom is; /* first: ONNX Runtime hands back its address */
  kerf_model piece;
  plan alone;
  char name[32];
} operator;

typedef struct idle {
  kerf_session *session;
  struct idle *next;
} idle;

typedef struct {
  const operator *of;
  const entry *table;
  pthread_mutex_t lock;
  idle *free; /* sessions that no call runs in */
} kernel;

static Status *failure(const entry *table) { return CALL(CREATE_STATUS, int, const char *)(1, kerf_message()); }

static const char *name_of(const custom *c) { return ((const operator *)c)->name; }
static const char *no_provider(const custom *c) { return (void)c, NULL; }
static size_t inputs_of(const custom *c) { return ((const operator *)c)->piece.inputs; }
static size_t outputs_of(const custom *c) { return ((const operator *)c)->piece.outputs; }
static int input_type(const custom *c, size_t i) { return (int)((const operator *)c)->piece.input[i].type; }
static int output_type(const custom *c, size_t i) { return (int)((const operator *)c)->piece.output[i].type; }
static int required(const custom *c, size_t i) { return (void)c, (void)i, 0; }
static int one(const custom *c) { return (void)c, 1; }

/* A session of this kernel's that no other call runs in; calls may come from several threads. */
static idle *take_session(kernel *k) {
  pthread_mutex_lock(&k->lock);
  idle *found = k->free;
  if (found) k->free = found->next;
  pthread_mutex_unlock(&k->lock);
  if (found) return found;
  found = calloc(1, sizeof *found);
  if (!found) failed(KERF_NO_MEMORY, "no memory");
  if (found && kerf_start(&k->of->piece, 0, NULL, &found->session)) {
    free(found);
    found = NULL;
  }
  return found;
}

static void give_session(kernel *k, idle *done) {
  pthread_mutex_lock(&k->lock);
  done->next = k->free;
  k->free = done;
  pthread_mutex_unlock(&k->lock);
}

static void destroy(void *given) {
  kernel *k = given;
  while (k->free) {
    idle *next = k->free->next;
    kerf_end(k->free->session);
    free(k->free);
    k->free = next;
  }
  pthread_mutex_destroy(&k->lock);
  free(k);
}

static Status *create(const custom *c, const entry *table, const void *info, void **made) {
  kernel *k = calloc(1, sizeof *k);
  (void)info;
  if (!k) return failed(KERF_NO_MEMORY, "no memory"), failure(table);
  k->of = (const operator *)c;
  k->table = table;
  pthread_mutex_init(&k->lock, NULL);
  idle *first = take_session(k); /* all that can fail fails here, not in a run */
  if (!first) return destroy(k), failure(table);
  give_session(k, first);
  *made = k;
  return NULL;
}

static Status *input_of(const entry *table, void *context, const kerf_tensor *is, size_t i, const void **data) {
  const void *value = NULL;
  void *about = NULL, *at = NULL;
  size_t count = 0;
  Status *status = CALL(CONTEXT_INPUT, const void *, size_t, const void **)(context, i, &value);
  if (!status) status = CALL(GET_TYPE_AND_SHAPE, const void *, void **)(value, &about);
  if (!status) status = CALL(GET_COUNT, const void *, size_t *)(about, &count);
  if (about) ((void (*)(void *))table[RELEASE_TYPE_AND_SHAPE])(about);
  if (!status) status = CALL(GET_TENSOR_DATA, const void *, void **)(value, &at);
  if (!status && count * size_of(is->type) != kerf_bytes(*is))
    return failed(KERF_BAD_ARGUMENT, "'%s' is of other sizes than this piece was compiled for", is->name), failure(table);
  *data = at;
  return status;
}

static Status *compute(void *given, void *context) {
  kernel *k = given;
  const entry *table = k->table;
  const kerf_model *piece = &k->of->piece;
  const void *small_in[16], **inputs = small_in;
  void *small_out[16], **outputs = small_out, *value = NULL, *many = NULL;
  Status *status = NULL;
  if (piece->inputs > 16 || piece->outputs > 16) {
    many = calloc(piece->inputs + piece->outputs, sizeof(void *));
    if (!many) return failed(KERF_NO_MEMORY, "no memory"), failure(table);
    inputs = many;
    outputs = (void **)many + piece->inputs;
  }
  for (uint32_t i = 0; !status && i < piece->inputs; i++)
    status = input_of(table, context, &piece->input[i], i, &inputs[i]);
  for (uint32_t i = 0; !status && i < piece->outputs; i++) {
    const kerf_tensor *is = &piece->output[i];
    status = CALL(CONTEXT_OUTPUT, void *, size_t, const int64_t *, size_t, void **)(context, i, is->shape,
                                                                                   (size_t)is->rank, &value);
    if (!status) status = CALL(GET_TENSOR_DATA, const void *, void **)(value, &outputs[i]);
  }
  if (!status) {
    idle *run = take_session(k);
    if (!run || kerf_run(run->session, inputs, outputs)) status = failure(table);
    if (run) give_session(k, run);
  }
  free(many);
  return status;
}

/* The i-th step of the first plan that this CPU runs, as a model of its own. */
static kerf_status make(operator *made, const kerf_model *model, const plan *runs, uint32_t i) {
  const step *what = &runs->to_do[i];
  memory *own = (memory *)(uintptr_t)&model->own;
  made->piece = *model;
  made->alone = *runs;
  made->alone.inputs = 0;
  made->alone.steps = 1;
  made->alone.to_do = &runs->to_do[i];
  made->piece.plans = 1;
  made->piece.possible = &made->alone;
  made->piece.inputs = what->inputs.count;
  made->piece.outputs = what->outputs.count;
  made->piece.input = take_many(own, what->inputs.count, sizeof *made->piece.input);
  made->piece.output = take_many(own, what->outputs.count, sizeof *made->piece.output);
  if (!made->piece.input || !made->piece.output) return failed(KERF_NO_MEMORY, "no memory");
  for (uint32_t k = 0; k < what->inputs.count; k++) made->piece.input[k] = runs->value[what->inputs.at[k]];
  for (uint32_t k = 0; k < what->outputs.count; k++) made->piece.output[k] = runs->value[what->outputs.at[k]];
  snprintf(made->name, sizeof made->name, "Piece%u", i);
  made->is = (custom){
      .version = VERSION, .name = name_of, .provider = no_provider, .input_type = input_type, .inputs = inputs_of,
      .output_type = output_type, .outputs = outputs_of, .destroy = destroy, .input_kind = required,
      .output_kind = required, .input_memory = required, .least_inputs = one, .inputs_alike = one, .least_outputs = one,
      .outputs_alike = one, .create_v2 = create, .compute_v2 = compute};
  return KERF_OK;
}

static pthread_mutex_t once = PTHREAD_MUTEX_INITIALIZER;
static void *domain; /* of this library's bundle, for the life of the process */

static kerf_status bundle_beside(kerf_model **model, char *called, size_t room) {
  Dl_info where;
  char folder[4096];
  if (!dladdr((void *)(uintptr_t)kerf_open, &where)) return failed(KERF_NO_BUNDLE, "libkerf_ops does not know where it is");
  snprintf(folder, sizeof folder, "%s", where.dli_fname);
  char *slash = strrchr(folder, '/');
  if (slash) *slash = 0;
  if (!slash) snprintf(folder, sizeof folder, ".");
  kerf_status status = kerf_open(folder, NULL, model);
  if (status) return status;
  size_t used = (size_t)snprintf(called, room, "kerf.");
  for (int i = 0; i < 8; i++) used += (size_t)snprintf(called + used, room - used, "%02x", (*model)->hash[i]);
  return KERF_OK;
}

static Status *make_domain(const entry *table) {
  kerf_model *model = NULL;
  char called[64];
  if (bundle_beside(&model, called, sizeof called)) return failure(table);
  const plan *runs = fitting(model, NULL); /* there is one, or it would not have opened */
  void *made = NULL;
  char *lasting = take(&model->own, sizeof called);
  if (!runs || !lasting) return failed(KERF_NO_MEMORY, "no memory, or a bundle without plans"), failure(table);
  Status *status = CALL(CREATE_DOMAIN, const char *, void **)(strcpy(lasting, called), &made);
  for (uint32_t i = 0; !status && i < runs->steps; i++) {
    if (runs->to_do[i].file) continue;
    operator *o = take(&model->own, sizeof *o);
    if (!o || make(o, model, runs, i)) return failure(table);
    status = CALL(DOMAIN_ADD, void *, const custom *)(made, &o->is);
  }
  if (!status) domain = made;
  return status;
}

/* What SessionOptions.register_custom_ops_library (C: RegisterCustomOpsLibrary) calls. */
SHOWN Status *RegisterCustomOps(void *options, const base *onnxruntime) {
  const entry *table = onnxruntime->api(VERSION);
  if (!table) { /* without an API there is no status to make */
    fprintf(stderr, "kerf: ONNX Runtime %s is too old for libkerf_ops, which needs 1.%d\n", onnxruntime->version(), VERSION);
    return NULL;
  }
  pthread_mutex_lock(&once);
  Status *status = domain ? NULL : make_domain(table);
  pthread_mutex_unlock(&once);
  return status ? status : CALL(ADD_DOMAIN, void *, void *)(options, domain);
}
