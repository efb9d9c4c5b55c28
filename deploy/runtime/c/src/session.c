/* A plan laid out in memory: every tensor's place, every function's arguments, so that a run is a list of calls. */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

typedef struct {
  function run;
  const any *arguments;
  int32_t count;
  const char *name;
} ready;

typedef struct {
  piece *other; /* of a dense engine, else calls */
  uint32_t calls;
  ready *call;
} stage;

struct kerf_session {
  memory own;
  const kerf_model *model;
  const plan *runs;
  team *workers;
  generated *library;
  engine *runtime;
  place *places;  /* of values */
  piece **makers; /* of values without a place */
  stage *stages;
  kerf_tensor *input, *output;
  uint32_t *input_value, *output_value; /* NONE: an input that nothing reads */
  bool ran;
};

#define NONE 0xffffffffu
#define NO_MEMORY failed(KERF_NO_MEMORY, "no memory for a session")

static void move_to(cell *c, void *data) {
  if (c->data == data) return;
  c->data = data;
  for (user *u = c->users; u; u = u->next) u->tensor->data = (char *)data + u->offset;
}

static cell *new_cell(memory *own, int64_t bytes) {
  cell *made = bytes < 0 ? NULL : take(own, sizeof *made);
  if (!made || !(made->data = made->room = take(own, (size_t)bytes))) return NULL;
  made->bytes = bytes;
  return made;
}

static bool use(memory *own, cell *c, dl_tensor *tensor, int64_t offset, size_t bytes) {
  user *made = take(own, sizeof *made);
  if (!made) return false;
  *made = (user){tensor, offset, c->users};
  c->users = made;
  tensor->data = (char *)c->data + offset;
  if (offset + (int64_t)bytes > c->used) c->used = offset + (int64_t)bytes;
  return true;
}

static uint32_t named(const plan *runs, const char *name) {
  for (uint32_t v = 0; v < runs->values; v++)
    if (!strcmp(runs->value[v].name, name)) return v;
  return NONE;
}

static bool same(const kerf_tensor *asked, const int64_t *shape) {
  return asked->rank <= 0 || !memcmp(asked->shape, shape, (size_t)asked->rank * sizeof *shape);
}

const plan *fitting(const kerf_model *model, const int64_t *const *shapes) {
  const plan *best = NULL;
  for (uint32_t i = 0; i < model->plans; i++) {
    const plan *p = &model->possible[i];
    const char *lacks = lacking(p->needed.machine, p->needed.feature, p->needed.features);
    bool fits = lacks && !*lacks;
    for (uint32_t k = 0; fits && shapes && k < p->inputs; k++)
      fits = shapes[p->input[k]] && same(&p->sizes[k], shapes[p->input[k]]);
    if (fits && (!best || p->needed.features > best->needed.features)) best = p;
  }
  return best;
}

/* The whole network in a dense engine, for sizes that no plan is for; NULL where memory ends. */
static const plan *whole(const kerf_model *model, memory *own, const int64_t *const *shapes) {
  plan *made = take(own, sizeof *made);
  step *only = take(own, sizeof *only);
  kerf_tensor *values = take_many(own, model->inputs + model->outputs, sizeof *values);
  uint32_t *order = take_many(own, model->inputs + model->outputs, sizeof *order);
  if (!made || !only || !values || !order) return NULL;
  for (uint32_t i = 0; i < model->inputs + model->outputs; i++) {
    order[i] = i;
    values[i] = i < model->inputs ? model->input[i] : model->output[i - model->inputs];
    if (i < model->inputs) values[i].shape = shapes[i];
    else values[i].rank = -1;
  }
  *only = (step){.engine = "onnxruntime", .file = model->fallback, .inputs = {model->inputs, order}};
  only->outputs = (numbers){model->outputs, order + model->inputs};
  *made = (plan){.target = "onnxruntime", .library = "", .values = model->inputs + model->outputs, .value = values};
  made->steps = 1;
  made->to_do = only;
  return made;
}

/* Which value each of the network's inputs and outputs is, and with the plan's sizes. */
static kerf_status ends(kerf_session *s, const int64_t *const *shapes) {
  const kerf_model *model = s->model;
  s->input = take_many(&s->own, model->inputs, sizeof *s->input);
  s->output = take_many(&s->own, model->outputs, sizeof *s->output);
  s->input_value = take_many(&s->own, model->inputs, sizeof *s->input_value);
  s->output_value = take_many(&s->own, model->outputs, sizeof *s->output_value);
  if (!s->input || !s->output || !s->input_value || !s->output_value) return NO_MEMORY;
  for (uint32_t i = 0; i < model->inputs; i++) {
    uint32_t v = s->input_value[i] = named(s->runs, model->input[i].name);
    s->input[i] = model->input[i];
    if (v != NONE) s->input[i] = s->runs->value[v];
    for (uint32_t k = 0; k < s->runs->inputs; k++)
      if (s->runs->input[k] == i) s->input[i].shape = s->runs->sizes[k].shape;
    if (s->runs->inputs == 0 && shapes && v != NONE) s->input[i].shape = s->runs->value[v].shape;
    s->input[i].name = model->input[i].name;
    if (v == NONE) continue;
    if (!kerf_bytes(s->input[i]) && !size_of(s->input[i].type))
      return failed(KERF_UNSUPPORTED, "input '%s' is of a type that C lacks", s->input[i].name);
    s->places[v].in = new_cell(&s->own, (int64_t)kerf_bytes(s->input[i]));
    if (!s->places[v].in) return NO_MEMORY;
    s->places[v].in->input = true;
  }
  for (uint32_t o = 0; o < model->outputs; o++) {
    uint32_t v = s->output_value[o] = named(s->runs, model->output[o].name);
    if (v == NONE)
      return failed(KERF_BAD_BUNDLE, "%s: nothing computes output '%s'", model->folder, model->output[o].name);
    s->output[o] = s->runs->value[v];
  }
  return KERF_OK;
}

/* One of kerf's pieces: its tensors and the arguments of its calls. */
static kerf_status lay_out(kerf_session *s, const step *what, stage *into) {
  memory *own = &s->own;
  if (*what->refusal) return failed(KERF_UNSUPPORTED, "%s: needs TVM's runtime (%s)", s->model->folder, what->refusal);
  cell **storages = take_many(own, what->storages, sizeof *storages);
  dl_tensor *tensors = take_many(own, what->tensors, sizeof *tensors);
  place *places = take_many(own, what->tensors, sizeof *places);
  into->call = take_many(own, what->calls, sizeof *into->call);
  if (!storages || !tensors || !places || !into->call) return NO_MEMORY;
  for (uint32_t i = 0; i < what->storages; i++)
    if (!(storages[i] = new_cell(own, what->storage[i]))) return NO_MEMORY;
  for (uint32_t i = 0; i < what->tensors; i++) {
    const lying *t = &what->tensor[i];
    kerf_status status = describe(own, t->tensor, &tensors[i]);
    if (status) return status;
    size_t size = kerf_bytes(t->tensor);
    if (t->root == ROOT_WEIGHT || t->root == ROOT_CONSTANT) {
      const bytes_of *in = t->root == ROOT_WEIGHT ? &s->model->weight[what->weights.at[t->index]] : &what->constant[t->index];
      if (t->offset + (int64_t)size > in->bytes) return failed(KERF_BAD_BUNDLE, "%s: a tensor beyond its memory", s->model->folder);
      tensors[i].data = (char *)in->data + t->offset;
      continue;
    }
    places[i] = (place){t->root == ROOT_INPUT ? s->places[what->inputs.at[t->index]].in : storages[t->index], t->offset};
    if (t->root == ROOT_INPUT && places[i].in) places[i].offset += s->places[what->inputs.at[t->index]].offset;
    if (!places[i].in || places[i].offset + (int64_t)size > places[i].in->bytes)
      return failed(KERF_BAD_BUNDLE, "%s: a tensor beyond its memory", s->model->folder);
    if (!use(own, places[i].in, &tensors[i], places[i].offset, size)) return NO_MEMORY;
  }
  for (uint32_t i = 0; i < what->calls; i++) {
    const call *c = &what->to_call[i];
    any *arguments = take_many(own, c->count, sizeof *arguments);
    if (!arguments) return NO_MEMORY;
    for (uint32_t k = 0; k < c->count; k++) {
      const argument *a = &c->arguments[k];
      static const int32_t TYPES[] = {ANY_TENSOR, ANY_INT, ANY_FLOAT};
      arguments[k].type = TYPES[a->kind];
      if (a->kind == ARGUMENT_TENSOR) arguments[k].value.pointer = &tensors[a->value.integer];
      else arguments[k].value.integer = a->value.integer; /* the same eight bytes */
    }
    into->call[i] = (ready){find_function(s->library, c->function), arguments, (int32_t)c->count, c->function};
    if (!into->call[i].run) return failed(KERF_BAD_BUNDLE, "%s: its library lacks %s", s->model->folder, c->function);
  }
  into->calls = what->calls;
  for (uint32_t i = 0; i < what->outputs.count; i++) {
    uint32_t tensor = what->results.at[i];
    if (!places[tensor].in) return failed(KERF_UNSUPPORTED, "%s: a result that is a constant", s->model->folder);
    s->places[what->outputs.at[i]] = places[tensor];
  }
  return KERF_OK;
}

/* A piece of a dense engine: its outputs' memory, and the engine with its model. */
static kerf_status hand_over(kerf_session *s, const step *what, stage *into) {
  const plan *runs = s->runs;
  if (strcmp(what->engine, "onnxruntime"))
    return failed(KERF_UNSUPPORTED, "%s: %s runs this network, which libkerf does not call; build it with --engine kerf, or "
                  "--against onnxruntime", s->model->folder, what->engine);
  for (uint32_t i = 0; i < what->outputs.count; i++) {
    uint32_t v = what->outputs.at[i];
    if (runs->value[v].rank >= 0 && size_of(runs->value[v].type)) {
      bool open = false;
      for (int32_t d = 0; d < runs->value[v].rank; d++) open = open || runs->value[v].shape[d] < 0;
      if (open) continue;
      cell *made = s->places[v].in = new_cell(&s->own, (int64_t)kerf_bytes(runs->value[v]));
      if (!made) return NO_MEMORY;
      made->used = made->bytes;
    }
  }
  char *path = joined(&s->own, s->model->folder, what->file);
  if (!path) return NO_MEMORY;
  kerf_status status = open_piece(s->runtime, &s->own, path, what, runs->value, s->places, &into->other);
  for (uint32_t i = 0; !status && i < what->outputs.count; i++)
    if (!s->places[what->outputs.at[i]].in) s->makers[what->outputs.at[i]] = into->other;
  return status;
}

static kerf_status call_all(kerf_session *s, const stage *of) {
  any result;
  for (uint32_t i = 0; i < of->calls; i++) {
    const ready *c = &of->call[i];
    result = (any){0};
    if (c->run(NULL, c->arguments, c->count, &result))
      return failed(KERF_RUN_FAILED, "%s: %s", c->name, team_error(s->workers));
  }
  return KERF_OK;
}

static kerf_status started(kerf_session *s, int threads, const int64_t *const *shapes) {
  const kerf_model *model = s->model;
  s->runs = fitting(model, shapes);
  if (!s->runs && *model->fallback && shapes) s->runs = whole(model, &s->own, shapes);
  if (!s->runs) return failed(KERF_BAD_ARGUMENT, "%s: was compiled for inputs of other sizes", model->folder);
  s->places = take_many(&s->own, s->runs->values, sizeof *s->places);
  s->makers = take_many(&s->own, s->runs->values, sizeof *s->makers);
  s->stages = take_many(&s->own, s->runs->steps, sizeof *s->stages);
  if (!s->places || !s->makers || !s->stages) return NO_MEMORY;
  kerf_status status = ends(s, shapes);
  if (!status) status = team_start(threads, &s->workers);
  if (!status && *s->runs->library) {
    char *path = joined(&s->own, model->folder, s->runs->library);
    status = path ? load_generated(&s->own, path, &s->library) : NO_MEMORY;
  }
  bool others = false;
  for (uint32_t i = 0; i < s->runs->steps; i++) others = others || s->runs->to_do[i].file;
  if (!status && others) status = open_engine(model->onnxruntime, threads, s->runs->steps == 1, &s->runtime);
  team *before = status ? NULL : s->workers;
  if (before) team_enter(before);
  for (uint32_t i = 0; !status && i < s->runs->steps; i++) {
    const step *what = &s->runs->to_do[i];
    status = what->file ? hand_over(s, what, &s->stages[i]) : lay_out(s, what, &s->stages[i]);
    if (!status) status = call_all(s, &s->stages[i]); /* workers find the room that their tasks ask for */
  }
  if (before) team_leave();
  return status;
}

kerf_status kerf_start(const kerf_model *model, int threads, const int64_t *const *shapes, kerf_session **session) {
  if (!model || !session) return failed(KERF_BAD_ARGUMENT, "kerf_start: no model, or no place for the session");
  *session = NULL;
  if (threads < 0 || threads > 1024) return failed(KERF_BAD_ARGUMENT, "kerf_start: %d threads; expected 0 to 1024", threads);
  if (threads > 1 && model->threads == 1)
    return failed(KERF_BAD_ARGUMENT, "%s: built for one thread, which %d cannot share; build it again with --threads %d",
                  model->folder, threads, threads);
  kerf_session *made = calloc(1, sizeof *made);
  if (!made) return NO_MEMORY;
  made->model = model;
  kerf_status status = started(made, threads ? threads : (int)model->threads, shapes);
  if (status)
    kerf_end(made);
  else
    *session = made;
  return status;
}

void kerf_end(kerf_session *s) {
  if (!s) return;
  for (uint32_t i = 0; s->stages && i < s->runs->steps; i++) close_piece(s->stages[i].other);
  close_engine(s->runtime);
  team_end(s->workers);
  unload_generated(s->library);
  release(&s->own);
  free(s);
}

static void take_inputs(kerf_session *s, const void *const *inputs) {
  for (uint32_t i = 0; i < s->model->inputs; i++) {
    cell *c = s->input_value[i] == NONE ? NULL : s->places[s->input_value[i]].in;
    if (!c) continue;
    if ((uintptr_t)inputs[i] % ALIGNED) {
      move_to(c, c->room);
      memcpy(c->data, inputs[i], (size_t)c->bytes);
    } else {
      move_to(c, (void *)(uintptr_t)inputs[i]); /* generated code takes no const, and writes nothing there */
    }
  }
}

/* Outputs that can be are computed where the caller wants them. */
static void take_outputs(kerf_session *s, void *const *outputs) {
  for (uint32_t o = 0; o < s->model->outputs; o++) {
    const place *p = &s->places[s->output_value[o]];
    if (p->in && !p->in->input) p->in->claimed = false;
  }
  for (uint32_t o = 0; o < s->model->outputs; o++) {
    const place *p = &s->places[s->output_value[o]];
    cell *c = p->in;
    if (!c || c->input || c->claimed) continue;
    bool alone = !p->offset && c->used <= (int64_t)kerf_bytes(s->output[o]);
    bool direct = alone && outputs && outputs[o] && (uintptr_t)outputs[o] % ALIGNED == 0;
    move_to(c, direct ? outputs[o] : c->room);
    c->claimed = direct;
  }
}

kerf_status kerf_run(kerf_session *s, const void *const *inputs, void *const *outputs) {
  if (!s || (!inputs && s->model->inputs)) return failed(KERF_BAD_ARGUMENT, "kerf_run: no session, or no inputs");
  for (uint32_t i = 0; i < s->model->inputs; i++)
    if (!inputs[i]) return failed(KERF_BAD_ARGUMENT, "kerf_run: no input '%s'", s->input[i].name);
  for (uint32_t o = 0; outputs && o < s->model->outputs; o++)
    if (outputs[o] && !s->places[s->output_value[o]].in)
      return failed(KERF_BAD_ARGUMENT, "kerf_run: sizes of output '%s' are not known before; give NULL, and read "
                    "kerf_result()", s->output[o].name);
  s->ran = false;
  take_inputs(s, inputs);
  take_outputs(s, outputs);
  kerf_status status = KERF_OK;
  team_enter(s->workers);
  for (uint32_t i = 0; !status && i < s->runs->steps; i++)
    status = s->stages[i].other ? run_piece(s->stages[i].other, s->makers) : call_all(s, &s->stages[i]);
  team_leave();
  if (status) return status;
  for (uint32_t o = 0; outputs && o < s->model->outputs; o++) {
    const place *p = &s->places[s->output_value[o]];
    char *from = p->in ? (char *)p->in->data + p->offset : NULL;
    if (outputs[o] && from != outputs[o]) memcpy(outputs[o], from, kerf_bytes(s->output[o]));
  }
  s->ran = true;
  return KERF_OK;
}

kerf_status kerf_result(kerf_session *s, size_t i, const void **data, kerf_tensor *tensor) {
  if (!s || !data || !tensor || i >= s->model->outputs || !s->ran)
    return failed(KERF_BAD_ARGUMENT, "kerf_result: no such output, or nothing ran");
  const place *p = &s->places[s->output_value[i]];
  *tensor = s->output[i];
  if (!p->in) return found_by(s->makers[s->output_value[i]], s->output_value[i], data, tensor);
  *data = (char *)p->in->data + p->offset;
  return KERF_OK;
}

kerf_tensor kerf_session_input(const kerf_session *s, size_t i) {
  return s && i < s->model->inputs ? s->input[i] : (kerf_tensor){NULL, KERF_UNKNOWN, 0, NULL};
}

kerf_tensor kerf_session_output(const kerf_session *s, size_t i) {
  return s && i < s->model->outputs ? s->output[i] : (kerf_tensor){NULL, KERF_UNKNOWN, 0, NULL};
}

const char *kerf_session_target(const kerf_session *s) { return s ? s->runs->target : ""; }
