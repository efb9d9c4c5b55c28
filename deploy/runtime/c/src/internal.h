/* What libkerf's files share; nothing of it is for its users. */
#ifndef KERF_INTERNAL_H
#define KERF_INTERNAL_H

#include <stdbool.h>

#include "kerf.h"

#define ALIGNED 64 /* bytes that generated code expects tensors to start on */
#define SHOWN __attribute__((visibility("default"))) /* to others, in every library that these files are linked into */
#define LENGTH(array) (sizeof(array) / sizeof *(array))

/* ---- errors.c */
kerf_status failed(kerf_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));
void said(const char *text); /* becomes kerf_message() */

/* ---- memory.c: blocks that are freed together */
typedef struct block block;
typedef struct {
  block *first;
} memory;
/* Zeroed, aligned; of 0 bytes a valid address, too. NULL when there is none. */
void *take(memory *from, size_t bytes);
void *take_many(memory *from, size_t count, size_t bytes);
char *joined(memory *from, const char *folder, const char *name); /* "folder/name" */
void release(memory *all);

/* ---- files.c */
typedef struct {
  const uint8_t *data;
  size_t size;
} mapping;
kerf_status map_file(const char *path, mapping *found);
void unmap_file(mapping *file);
void sha256(const uint8_t *data, size_t size, uint8_t digest[32]);

/* ---- machine.c */
/* The first of a bundle's needs that this machine lacks, "" for none; NULL where the architecture is another. */
const char *lacking(const char *machine, const char *const *features, size_t count);
const char *this_machine(void);

/* ---- program.c: what program.bin holds, as deploy/runtime/program_file.py writes it */
enum { ROOT_INPUT, ROOT_WEIGHT, ROOT_STORAGE, ROOT_CONSTANT };
enum { ARGUMENT_TENSOR, ARGUMENT_INT, ARGUMENT_FLOAT };

typedef struct {
  uint32_t kind;
  union {
    int64_t integer; /* of a tensor its number */
    double real;
  } value;
} argument;

typedef struct {
  const char *function;
  uint32_t count;
  argument *arguments;
} call;

typedef struct {
  uint32_t root, index;
  int64_t offset;
  kerf_tensor tensor;
} lying;

typedef struct {
  void *data;
  int64_t bytes;
} bytes_of;

typedef struct {
  uint32_t count;
  uint32_t *at;
} numbers;

typedef struct {
  const char *engine;
  const char *file; /* of a dense engine's piece; NULL of kerf's */
  numbers inputs, outputs; /* values of the plan */
  const char *refusal;
  numbers weights;
  uint32_t storages, constants, tensors, calls;
  int64_t *storage;
  bytes_of *constant;
  lying *tensor;
  call *to_call;
  numbers results;
} step;

typedef struct {
  const char *machine;
  uint32_t features;
  const char **feature;
} needs;

typedef struct {
  needs needed;
  const char *target;
  uint32_t inputs;
  uint32_t *input; /* which of the network's inputs */
  kerf_tensor *sizes;
  const char *library; /* "" where no piece is kerf's */
  uint32_t values, steps;
  kerf_tensor *value;
  step *to_do;
} plan;

struct kerf_model {
  memory own;
  const char *folder, *onnxruntime, *target, *fallback;
  uint32_t threads;
  mapping weights_file;
  uint32_t weights, inputs, outputs, plans;
  bytes_of *weight;
  kerf_tensor *input, *output;
  plan *possible;
  uint8_t hash[32]; /* of program.bin */
};
kerf_status read_program(kerf_model *model, const mapping *file);
size_t size_of(kerf_type type);

/* ---- threads.c: workers of one session; the caller is worker 0 */
typedef struct team team;
typedef int (*task)(int id, void *group, void *data); /* as TVM's code has it */
kerf_status team_start(int workers, team **made);
void team_end(team *workers);
void team_enter(team *workers); /* from here on generated code that this thread calls is shared with them */
void team_leave(void);
const char *team_error(team *workers); /* what generated code said since the last call */

/* ---- generated.c: the interface of generated code */
typedef struct generated generated; /* a library's */
kerf_status load_generated(memory *own, const char *path, generated **found);
void unload_generated(generated *library);

typedef struct {
  void *data;
  struct {
    int32_t type, id;
  } device;
  int32_t rank;
  struct {
    uint8_t code, bits;
    uint16_t lanes;
  } type;
  int64_t *shape, *strides;
  uint64_t offset;
} dl_tensor; /* DLPack's DLTensor */

typedef struct {
  int32_t type;
  uint32_t padding;
  union {
    int64_t integer;
    double real;
    void *pointer;
  } value;
} any; /* TVMFFIAny */
enum { ANY_INT = 1, ANY_FLOAT = 3, ANY_TENSOR = 7 };
typedef int (*function)(void *self, const any *arguments, int32_t count, any *result);
function find_function(generated *library, const char *name);
kerf_status describe(memory *own, kerf_tensor tensor, dl_tensor *described);

/* ---- session.c */
/* The plan for these sizes (NULL: any) that asks most of what this CPU has; of equals the first, NULL for none. */
const plan *fitting(const kerf_model *model, const int64_t *const *shapes);

typedef struct user {
  dl_tensor *tensor;
  int64_t offset;
  struct user *next;
} user;

typedef struct {
  void *data, *room; /* where it lies now, and its own place */
  int64_t bytes, used;
  user *users;
  bool input, claimed; /* the network's; by one of the caller's outputs */
} cell; /* memory that moves as a whole */

typedef struct {
  cell *in; /* NULL: what an engine allocates while it runs */
  int64_t offset;
} place;

/* ---- onnxruntime.c */
typedef struct engine engine;
typedef struct piece piece;
kerf_status open_engine(const char *path, int threads, bool alone, engine **found);
void close_engine(engine *runtime);
/* Of values, types and sizes by their number; makers: the pieces that made those without a place, by number. */
kerf_status open_piece(engine *runtime, memory *own, const char *path, const step *what, const kerf_tensor *values,
                       const place *places, piece **made);
kerf_status run_piece(piece *run, piece *const *makers);
/* A value without a place, after a run of the piece that makes it. */
kerf_status found_by(piece *run, uint32_t value, const void **data, kerf_tensor *tensor);
void close_piece(piece *run);

#endif
