/* libkerf: runs bundles of `kerf compile`. No Python, no compiler, no TVM; ONNX Runtime only for pieces that are its own.
 *
 * A model is what a bundle holds; it may be shared by threads. A session runs it, for one caller at a time: threads that
 * run at once have a session each. Every function that can fail returns a status; kerf_message() then says more.
 */
#ifndef KERF_H
#define KERF_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifndef KERF_API
#define KERF_API __attribute__((visibility("default")))
#endif
#define KERF_VERSION "0.2.0"

typedef enum kerf_status {
  KERF_OK = 0,
  KERF_BAD_ARGUMENT = 1,  /* what the caller gave means nothing */
  KERF_NO_BUNDLE = 2,     /* a file is missing or cannot be read */
  KERF_BAD_BUNDLE = 3,    /* a file is none of this version's, or was changed since it was built */
  KERF_WRONG_MACHINE = 4, /* built for another architecture, or for instructions that this CPU lacks */
  KERF_UNSUPPORTED = 5,   /* the bundle asks for something that libkerf does not do */
  KERF_NO_ENGINE = 6,     /* pieces need ONNX Runtime, which is not there or refuses them */
  KERF_NO_MEMORY = 7,
  KERF_RUN_FAILED = 8     /* a piece failed while it ran */
} kerf_status;

/* Of one number; the values are ONNX's (TensorProto.DataType). */
typedef enum kerf_type {
  KERF_UNKNOWN = 0,
  KERF_FLOAT32 = 1, KERF_UINT8 = 2, KERF_INT8 = 3, KERF_UINT16 = 4, KERF_INT16 = 5, KERF_INT32 = 6, KERF_INT64 = 7,
  KERF_BOOL = 9, KERF_FLOAT16 = 10, KERF_FLOAT64 = 11, KERF_UINT32 = 12, KERF_UINT64 = 13, KERF_BFLOAT16 = 16,
  KERF_FLOAT8E4M3FN = 17, KERF_FLOAT8E4M3FNUZ = 18, KERF_FLOAT8E5M2 = 19, KERF_FLOAT8E5M2FNUZ = 20
} kerf_type;

/* rank: -1 where it is known only when the network runs; of sizes that a file leaves open, -1. */
typedef struct kerf_tensor {
  const char *name;
  kerf_type type;
  int32_t rank;
  const int64_t *shape;
} kerf_tensor;

typedef struct kerf_model kerf_model;
typedef struct kerf_session kerf_session;

/* Opens the bundle in a folder: its files' hashes and this CPU are checked. onnxruntime: path of libonnxruntime for
 * pieces that it runs; NULL: $KERF_ONNXRUNTIME, then where the system's loader finds it. *model is NULL on failure. */
KERF_API kerf_status kerf_open(const char *folder, const char *onnxruntime, kerf_model **model);
/* Its sessions have ended before. NULL is allowed. */
KERF_API void kerf_close(kerf_model *model);

/* Inputs and outputs in the file's order; name and shape live as long as the model. Of i out of range all is 0. */
KERF_API size_t kerf_input_count(const kerf_model *model);
KERF_API size_t kerf_output_count(const kerf_model *model);
KERF_API kerf_tensor kerf_input(const kerf_model *model, size_t i);
KERF_API kerf_tensor kerf_output(const kerf_model *model, size_t i);

/* A session. threads: workers, the caller among them; 0: as many as the bundle was built for. shapes: sizes of each
 * input, as long as its rank; NULL: those that the bundle was compiled for first. All memory is allocated here. */
KERF_API kerf_status kerf_start(const kerf_model *model, int threads, const int64_t *const *shapes,
                                kerf_session **session);
KERF_API void kerf_end(kerf_session *session);
/* Inputs and outputs with the session's sizes. */
KERF_API kerf_tensor kerf_session_input(const kerf_session *session, size_t i);
KERF_API kerf_tensor kerf_session_output(const kerf_session *session, size_t i);
/* The target whose code runs, as the bundle names it. */
KERF_API const char *kerf_session_target(const kerf_session *session);
/* Bytes of a tensor whose sizes are all known, else 0. */
KERF_API size_t kerf_bytes(kerf_tensor tensor);

/* Runs the network: inputs[i] is read, outputs[i] is written, both without gaps, row by row, and none overlaps another.
 * Memory that starts at a multiple of 64 bytes is used where it is; other is copied. outputs[i] may be NULL, and is for
 * outputs of unknown sizes: kerf_result() then says where the output lies. libkerf's own code allocates nothing here. */
KERF_API kerf_status kerf_run(kerf_session *session, const void *const *inputs, void *const *outputs);
/* The i-th output of the last run, valid until the next. */
KERF_API kerf_status kerf_result(kerf_session *session, size_t i, const void **data, kerf_tensor *tensor);

/* What went wrong last in this thread, one line; "" if nothing did. */
KERF_API const char *kerf_message(void);

#ifdef __cplusplus
}
#endif
#endif
