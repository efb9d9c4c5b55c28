/* kerf.h for C++: objects that clean up after themselves, and exceptions in place of codes. */
#ifndef KERF_HPP
#define KERF_HPP

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "kerf.h"

namespace kerf {

class Error : public std::runtime_error {
 public:
  explicit Error(kerf_status status) : std::runtime_error(kerf_message()), status(status) {}
  kerf_status status;
};

inline void check(kerf_status status) {
  if (status != KERF_OK) throw Error(status);
}

class Model {
 public:
  explicit Model(const std::string &folder, const char *onnxruntime = nullptr) {
    kerf_model *opened = nullptr;
    check(kerf_open(folder.c_str(), onnxruntime, &opened));
    held_.reset(opened, kerf_close);
  }
  std::vector<kerf_tensor> inputs() const {
    std::vector<kerf_tensor> found;
    for (size_t i = 0; i < kerf_input_count(get()); i++) found.push_back(kerf_input(get(), i));
    return found;
  }
  std::vector<kerf_tensor> outputs() const {
    std::vector<kerf_tensor> found;
    for (size_t i = 0; i < kerf_output_count(get()); i++) found.push_back(kerf_output(get(), i));
    return found;
  }
  kerf_model *get() const { return held_.get(); }
  std::shared_ptr<kerf_model> shared() const { return held_; }

 private:
  std::shared_ptr<kerf_model> held_;
};

class Session {
 public:
  explicit Session(const Model &model, int threads = 0, const int64_t *const *shapes = nullptr)
      : model_(model.shared()) {
    kerf_session *started = nullptr;
    check(kerf_start(model_.get(), threads, shapes, &started));
    held_.reset(started);
  }
  kerf_tensor input(size_t i) const { return kerf_session_input(held_.get(), i); }
  kerf_tensor output(size_t i) const { return kerf_session_output(held_.get(), i); }
  void run(const std::vector<const void *> &inputs, const std::vector<void *> &outputs) {
    if (inputs.size() != kerf_input_count(model_.get()) || outputs.size() != kerf_output_count(model_.get()))
      throw std::invalid_argument("kerf: another number of inputs or outputs than the network has");
    check(kerf_run(held_.get(), inputs.data(), outputs.data()));
  }
  /* The i-th output of the last run; *tensor is its type and sizes. */
  const void *result(size_t i, kerf_tensor *tensor = nullptr) {
    const void *data = nullptr;
    kerf_tensor found;
    check(kerf_result(held_.get(), i, &data, &found));
    if (tensor) *tensor = found;
    return data;
  }
  kerf_session *get() const { return held_.get(); }

 private:
  struct End {
    void operator()(kerf_session *session) const { kerf_end(session); }
  };
  std::shared_ptr<kerf_model> model_;  /* outlives the session */
  std::unique_ptr<kerf_session, End> held_;
};

}  // namespace kerf
#endif
