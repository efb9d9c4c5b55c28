/* Reads program.bin. Its hash was checked: what is wrong below is another version's, and every number is still bounded. */
#include <string.h>

#include "internal.h"

#define VERSION 1
#define UNKNOWN 0xffffffffu

typedef struct {
  const uint8_t *at, *end;
  memory *own;
  bool bad;
} cursor;

static const uint8_t *bytes(cursor *from, size_t count) {
  if (from->bad || (size_t)(from->end - from->at) < count) {
    from->bad = true;
    return NULL;
  }
  const uint8_t *found = from->at;
  from->at += count;
  return found;
}

static uint32_t u32(cursor *from) {
  const uint8_t *b = bytes(from, 4);
  return b ? b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24 : 0;
}

static int64_t i64(cursor *from) {
  uint64_t low = u32(from), high = u32(from);
  return (int64_t)(high << 32 | low);
}

static void *room(cursor *from, uint32_t count, size_t each) {
  void *found = from->bad || count > (size_t)(from->end - from->at) ? NULL : take_many(from->own, count, each);
  if (!found) from->bad = true;
  return found;
}

/* How many things follow, each of at least a byte; into *many their room. */
static uint32_t several(cursor *from, size_t each, void *many) {
  uint32_t count = u32(from);
  void *found = room(from, count, each);
  memcpy(many, &found, sizeof found);
  return from->bad ? 0 : count;
}

static const char *text(cursor *from) {
  uint32_t length = u32(from);
  const uint8_t *found = bytes(from, length);
  char *copy = found ? room(from, 0, 0) : NULL;
  if (found && (copy = take(from->own, (size_t)length + 1))) memcpy(copy, found, length);
  if (!copy) from->bad = true;
  return copy ? copy : "";
}

static numbers some_numbers(cursor *from, uint32_t below) {
  numbers found;
  found.count = several(from, sizeof *found.at, &found.at);
  for (uint32_t i = 0; i < found.count; i++)
    if ((found.at[i] = u32(from)) >= below) from->bad = true;
  return found;
}

static void shaped(cursor *from, kerf_tensor *into, uint32_t rank) {
  int64_t *shape = room(from, rank == UNKNOWN ? 0 : rank, sizeof *shape);
  into->rank = rank == UNKNOWN ? -1 : (int32_t)rank;
  for (uint32_t i = 0; rank != UNKNOWN && !from->bad && i < rank; i++) shape[i] = i64(from);
  into->shape = shape;
}

static kerf_tensor tensor(cursor *from) {
  kerf_tensor found = {"", (kerf_type)u32(from), 0, NULL};
  shaped(from, &found, u32(from));
  return found;
}

static uint32_t named(cursor *from, kerf_tensor **many) {
  uint32_t count = several(from, sizeof **many, many);
  for (uint32_t i = 0; i < count; i++) {
    const char *name = text(from);
    (*many)[i] = tensor(from);
    (*many)[i].name = name;
  }
  return count;
}

size_t size_of(kerf_type type) {
  static const uint8_t SIZES[] = {0, 4, 1, 1, 2, 2, 4, 8, 0, 1, 2, 8, 4, 8, 0, 0, 2, 1, 1, 1, 1};
  return (unsigned)type < LENGTH(SIZES) ? SIZES[type] : 0;
}

size_t kerf_bytes(kerf_tensor tensor) {
  size_t found = size_of(tensor.type);
  for (int32_t i = 0; i < tensor.rank; i++) found = tensor.shape[i] < 0 ? 0 : found * (size_t)tensor.shape[i];
  return tensor.rank < 0 ? 0 : found;
}

static void read_needs(cursor *from, needs *into) {
  into->machine = text(from);
  into->features = several(from, sizeof *into->feature, &into->feature);
  for (uint32_t i = 0; i < into->features; i++) into->feature[i] = text(from);
}

static void read_call(cursor *from, call *into, uint32_t tensors) {
  into->function = text(from);
  into->count = several(from, sizeof *into->arguments, &into->arguments);
  for (uint32_t i = 0; i < into->count; i++) {
    argument *a = &into->arguments[i];
    a->kind = u32(from);
    a->value.integer = i64(from);
    if (a->kind == ARGUMENT_TENSOR && (uint64_t)a->value.integer >= tensors) from->bad = true;
  }
}

static void read_own(cursor *from, step *into, uint32_t weights) {
  into->weights = some_numbers(from, weights);
  into->refusal = text(from);
  into->storages = several(from, sizeof *into->storage, &into->storage);
  for (uint32_t i = 0; i < into->storages; i++) into->storage[i] = i64(from);
  into->constants = several(from, sizeof *into->constant, &into->constant);
  for (uint32_t i = 0; i < into->constants; i++) {
    bytes_of *c = &into->constant[i];
    c->bytes = u32(from);
    const uint8_t *data = bytes(from, (size_t)c->bytes);
    if (data && (c->data = take(from->own, (size_t)c->bytes))) memcpy(c->data, data, (size_t)c->bytes);
  }
  into->tensors = several(from, sizeof *into->tensor, &into->tensor);
  for (uint32_t i = 0; i < into->tensors; i++) {
    lying *t = &into->tensor[i];
    t->root = u32(from);
    t->index = u32(from);
    t->offset = i64(from);
    t->tensor = tensor(from);
    uint32_t known[] = {into->inputs.count, into->weights.count, into->storages, into->constants};
    if (t->root >= LENGTH(known) || t->index >= known[t->root] || t->offset < 0) from->bad = true;
  }
  into->calls = several(from, sizeof *into->to_call, &into->to_call);
  for (uint32_t i = 0; i < into->calls; i++) read_call(from, &into->to_call[i], into->tensors);
  into->results = some_numbers(from, into->tensors);
  if (!*into->refusal && into->results.count != into->outputs.count) from->bad = true;
}

static void read_plan(cursor *from, plan *into, const kerf_model *model) {
  into->target = text(from);
  read_needs(from, &into->needed);
  into->inputs = several(from, sizeof *into->input, &into->input);
  into->sizes = room(from, into->inputs, sizeof *into->sizes);
  for (uint32_t i = 0; i < into->inputs && !from->bad; i++) {
    if ((into->input[i] = u32(from)) >= model->inputs) from->bad = true;
    shaped(from, &into->sizes[i], u32(from));
  }
  into->library = text(from);
  into->values = named(from, &into->value);
  into->steps = several(from, sizeof *into->to_do, &into->to_do);
  for (uint32_t i = 0; i < into->steps && !from->bad; i++) {
    step *s = &into->to_do[i];
    s->engine = text(from);
    s->inputs = some_numbers(from, into->values);
    s->outputs = some_numbers(from, into->values);
    if (!strcmp(s->engine, "kerf"))
      read_own(from, s, model->weights);
    else
      s->file = text(from);
  }
}

/* The bundle's other files: their sizes and hashes are checked. */
static kerf_status read_files(cursor *from, kerf_model *model) {
  uint32_t count = u32(from);
  for (uint32_t i = 0; i < count && !from->bad; i++) {
    const char *name = text(from);
    int64_t size = i64(from);
    const uint8_t *expected = bytes(from, 32);
    char *path = joined(from->own, model->folder, name);
    mapping file = {NULL, 0};
    uint8_t digest[32];
    if (!path) return failed(KERF_NO_MEMORY, "no memory");
    if (from->bad) break;
    kerf_status status = map_file(path, &file);
    if (status) return status;
    sha256(file.data, file.size, digest);
    if ((int64_t)file.size != size || memcmp(digest, expected, 32)) {
      unmap_file(&file);
      return failed(KERF_BAD_BUNDLE, "%s: changed since it was built (SHA-256 differs); build the bundle again", path);
    }
    if (!strcmp(name, "weights.npz"))
      model->weights_file = file;
    else
      unmap_file(&file);
  }
  return KERF_OK;
}

kerf_status read_program(kerf_model *model, const mapping *file) {
  uint8_t *digest = model->hash;
  cursor from = {file->data, file->data + file->size, &model->own, false};
  const uint8_t *magic = bytes(&from, 8);
  if (!magic || file->size < 44 || memcmp(magic, "KERFPROG", 8))
    return failed(KERF_BAD_BUNDLE, "%s/program.bin: not of a bundle of kerf's", model->folder);
  uint32_t version = u32(&from);
  if (version != VERSION)
    return failed(KERF_BAD_BUNDLE, "%s/program.bin: format %u, expected %u; build the bundle again", model->folder,
                  version, VERSION);
  sha256(file->data, file->size - 32, digest);
  if (memcmp(digest, file->data + file->size - 32, 32))
    return failed(KERF_BAD_BUNDLE, "%s/program.bin: changed since it was built (SHA-256 differs)", model->folder);
  from.end -= 32;
  model->target = text(&from);
  model->threads = u32(&from);
  kerf_status status = read_files(&from, model);
  if (status) return status;
  model->weights = several(&from, sizeof *model->weight, &model->weight);
  for (uint32_t i = 0; i < model->weights; i++) {
    int64_t offset = i64(&from), size = i64(&from);
    if (offset < 0 || size < 0 || offset % ALIGNED || (uint64_t)offset + (uint64_t)size > model->weights_file.size)
      from.bad = true;
    else
      model->weight[i] = (bytes_of){(void *)(uintptr_t)(model->weights_file.data + offset), size};
  }
  model->inputs = named(&from, &model->input);
  model->outputs = named(&from, &model->output);
  model->fallback = text(&from);
  model->plans = several(&from, sizeof *model->possible, &model->possible);
  for (uint32_t i = 0; i < model->plans && !from.bad; i++) read_plan(&from, &model->possible[i], model);
  if (from.bad || from.at != from.end)
    return failed(KERF_BAD_BUNDLE, "%s/program.bin: cannot be read; build the bundle again", model->folder);
  return KERF_OK;
}
