/* Runs a bundle on arrays and prints the five largest numbers of its first output.
 *
 *   example BUNDLE INPUT... [--threads N] [--runs N] [--out FILE] [--onnxruntime LIBRARY]
 *
 * INPUT: a file per input, in their order: .npy, or the numbers alone as they lie in memory. --runs: repeats, and prints the
 * median of the times and the target whose code ran; --out: the outputs' numbers, one after the other. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kerf.h"

static int fail(const char *what, const char *why) {
  fprintf(stderr, "example: %s: %s\n", what, why);
  return 2;
}

static size_t padded(size_t bytes) { return bytes / 64 * 64 + 64; }

/* The numbers of a file; NULL, and *why, where it is not of that size. */
static void *numbers(const char *path, size_t bytes, const char **why) {
  unsigned char head[12] = {0};
  size_t skip = 0;
  FILE *file = fopen(path, "rb");
  void *data = aligned_alloc(64, padded(bytes));
  *why = "cannot be opened";
  if (!file || !data) goto broken;
  if (fread(head, 1, 12, file) == 12 && !memcmp(head, "\x93NUMPY", 6))
    skip = head[6] == 1 ? 10 + (head[8] | (size_t)head[9] << 8)
                        : 12 + (head[8] | (size_t)head[9] << 8 | (size_t)head[10] << 16 | (size_t)head[11] << 24);
  *why = "another number of bytes than the input has";
  if (fseek(file, 0, SEEK_END) || (size_t)ftell(file) != skip + bytes || fseek(file, (long)skip, SEEK_SET)) goto broken;
  if (fread(data, 1, bytes, file) != bytes) goto broken;
  fclose(file);
  return data;
broken:
  if (file) fclose(file);
  free(data);
  return NULL;
}

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int rising(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static void print_top(const float *y, size_t count) {
  size_t best[5], found = 0;
  for (size_t i = 0; i < count; i++) {
    size_t at = found < 5 ? found++ : 5;
    while (at > 0 && y[i] > y[best[at - 1]]) {
      if (at < 5) best[at] = best[at - 1];
      at--;
    }
    if (at < 5) best[at] = i;
  }
  for (size_t i = 0; i < found; i++) printf("%zu %.6g\n", best[i], (double)y[best[i]]);
}

typedef struct {
  const char *bundle, *out, *onnxruntime;
  char **files;
  int count, threads, runs;
} wish;

static int run(kerf_session *session, const kerf_model *model, const wish *asked) {
  size_t inputs = kerf_input_count(model), outputs = kerf_output_count(model);
  const void **x = calloc(inputs + 1, sizeof *x);
  double *times = calloc((size_t)asked->runs + 1, sizeof *times);
  int code = 0;
  if (!x || !times || (size_t)asked->count != inputs) code = fail(asked->bundle, "give a file for each of its inputs");
  for (size_t i = 0; !code && i < inputs; i++) {
    const char *why;
    if (!(x[i] = numbers(asked->files[i], kerf_bytes(kerf_session_input(session, i)), &why))) code = fail(asked->files[i], why);
  }
  for (int i = 0; !code && i < asked->runs; i++) {
    double begin = seconds();
    if (kerf_run(session, x, NULL)) code = fail(asked->bundle, kerf_message());
    times[i] = seconds() - begin;
  }
  FILE *out = code || !asked->out ? NULL : fopen(asked->out, "wb");
  if (!code && asked->out && !out) code = fail(asked->out, "cannot be written");
  for (size_t i = 0; !code && i < outputs; i++) {
    const void *y;
    kerf_tensor is;
    if (kerf_result(session, i, &y, &is)) code = fail(asked->bundle, kerf_message());
    if (!code && out) fwrite(y, 1, kerf_bytes(is), out);
    if (!code && i == 0 && is.type == KERF_FLOAT32) print_top(y, kerf_bytes(is) / sizeof(float));
  }
  if (out && fclose(out)) code = fail(asked->out, "cannot be written");
  if (!code && asked->runs > 1) {
    qsort(times, (size_t)asked->runs, sizeof *times, rising);
    printf("median %.4f ms of %d runs, %s\n", 1e3 * times[asked->runs / 2], asked->runs, kerf_session_target(session));
  }
  for (size_t i = 0; x && i < inputs; i++) free((void *)x[i]);
  free(x);
  free(times);
  return code;
}

int main(int count, char **words) {
  wish asked = {.threads = 0, .runs = 1, .files = words + 2};
  for (int i = 1; i < count; i++) {
    if (!strncmp(words[i], "--", 2) && i + 1 < count) {
      const char *name = words[i] + 2, *value = words[++i];
      if (!strcmp(name, "threads")) asked.threads = atoi(value);
      else if (!strcmp(name, "runs")) asked.runs = atoi(value);
      else if (!strcmp(name, "out")) asked.out = value;
      else if (!strcmp(name, "onnxruntime")) asked.onnxruntime = value;
      else return fail(words[i - 1], "no such flag; --threads, --runs, --out or --onnxruntime");
    } else if (!asked.bundle) {
      asked.bundle = words[i];
    } else {
      asked.files[asked.count++] = words[i];
    }
  }
  if (!asked.bundle || asked.runs < 1) return fail("usage", "example BUNDLE INPUT... [--threads N] [--runs N] [--out FILE]");
  kerf_model *model;
  kerf_session *session = NULL;
  int code = 0;
  if (kerf_open(asked.bundle, asked.onnxruntime, &model)) return fail("cannot open", kerf_message());
  if (kerf_start(model, asked.threads, NULL, &session)) code = fail("cannot start", kerf_message());
  if (!code) code = run(session, model, &asked);
  kerf_end(session);
  kerf_close(model);
  return code;
}
