#include <stdlib.h>
#include <string.h>

#include "internal.h"

static kerf_status opened(kerf_model *model, const char *folder, const char *onnxruntime) {
  mapping file = {NULL, 0};
  memory *own = &model->own;
  char *here = joined(own, folder, ""), *path = joined(own, folder, "program.bin");
  if (!here || !path) return failed(KERF_NO_MEMORY, "no memory");
  here[strlen(folder)] = 0;
  model->folder = here;
  if (!onnxruntime) onnxruntime = getenv("KERF_ONNXRUNTIME");
  if (onnxruntime) {
    char *copy = take(own, strlen(onnxruntime) + 1);
    if (!copy) return failed(KERF_NO_MEMORY, "no memory");
    model->onnxruntime = strcpy(copy, onnxruntime);
  }
  kerf_status status = map_file(path, &file);
  if (status) return failed(status, "%s: no bundle that libkerf runs (no program.bin); build it with kerf compile", folder);
  status = read_program(model, &file);
  unmap_file(&file);
  const char *lacks = "";
  for (uint32_t i = 0; !status && i < model->plans; i++) {
    const needs *asked = &model->possible[i].needed;
    lacks = lacking(asked->machine, asked->feature, asked->features);
    if (lacks && !*lacks) return KERF_OK;
    if (!lacks) status = failed(KERF_WRONG_MACHINE, "%s: built for %s, this machine is %s", folder, asked->machine, this_machine());
  }
  if (!status && model->plans)
    status = failed(KERF_WRONG_MACHINE, "%s: needs %s, which this CPU lacks; build it for another --target", folder, lacks);
  return status;
}

kerf_status kerf_open(const char *folder, const char *onnxruntime, kerf_model **model) {
  if (!model) return failed(KERF_BAD_ARGUMENT, "kerf_open: no place for the model");
  *model = NULL;
  if (!folder) return failed(KERF_BAD_ARGUMENT, "kerf_open: no folder");
  kerf_model *made = calloc(1, sizeof *made);
  if (!made) return failed(KERF_NO_MEMORY, "no memory");
  kerf_status status = opened(made, folder, onnxruntime);
  if (status)
    kerf_close(made);
  else
    *model = made;
  return status;
}

void kerf_close(kerf_model *model) {
  if (!model) return;
  unmap_file(&model->weights_file);
  release(&model->own);
  free(model);
}

size_t kerf_input_count(const kerf_model *model) { return model ? model->inputs : 0; }

size_t kerf_output_count(const kerf_model *model) { return model ? model->outputs : 0; }

kerf_tensor kerf_input(const kerf_model *model, size_t i) {
  return i < kerf_input_count(model) ? model->input[i] : (kerf_tensor){NULL, KERF_UNKNOWN, 0, NULL};
}

kerf_tensor kerf_output(const kerf_model *model, size_t i) {
  return i < kerf_output_count(model) ? model->output[i] : (kerf_tensor){NULL, KERF_UNKNOWN, 0, NULL};
}
