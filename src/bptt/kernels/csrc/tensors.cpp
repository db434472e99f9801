#include "tensors.h"

namespace tensors {
namespace {

constexpr int32_t kCpu = 1;
constexpr uint8_t kInteger = 0, kFloat = 2;

// Set once, when the module's user is imported.
PyTypeObject* type_ = nullptr;
PyTypeObject* parameter_ = nullptr;
PyObject* is_neg_ = nullptr;  // a method's name
const Exchange* exchange_ = nullptr;

bool is_contiguous(const View& view) {
  int64_t stride = 1;
  for (int axis = view.axes - 1; axis >= 0; --axis) {
    if (view.shape[axis] == 0) return true;
    if (view.shape[axis] != 1 && view.strides && view.strides[axis] != stride)
      return false;
    stride *= view.shape[axis];
  }
  return true;
}

int64_t elements(const View& view) {
  int64_t count = 1;
  for (int axis = 0; axis < view.axes; ++axis) count *= view.shape[axis];
  return count;
}

bool is_fit(PyObject* tensor, bool may_be_ids) {
  const PyTypeObject* type = Py_TYPE(tensor);
  View view{};
  if ((type != type_ && type != parameter_) || exchange_->view(tensor, &view) != 0)
    return false;
  const bool is_float = view.dtype.code == kFloat && view.dtype.bits == 32;
  const bool is_ids = may_be_ids && view.dtype.code == kInteger && view.dtype.bits == 64;
  if (view.device.type != kCpu || view.dtype.lanes != 1 || !(is_float || is_ids) ||
      !is_contiguous(view) || (!view.data && elements(view)))
    return false;
  PyObject* negative = PyObject_CallMethodNoArgs(tensor, is_neg_);
  Py_XDECREF(negative);
  return negative == Py_False;
}

bool to_integer(PyObject* from, int64_t* to) {
  *to = from ? PyLong_AsLongLong(from) : -1;
  return !PyErr_Occurred();
}

bool read_view(PyObject* from, Array* to) {
  View view{};
  if (exchange_->view(from, &view) != 0) return false;
  if (view.device.type != kCpu || view.dtype.lanes != 1 || !is_contiguous(view))
    return false;
  *to = {reinterpret_cast<uintptr_t>(view.data) + view.byte_offset, elements(view),
         view.dtype.bits};
  return true;
}

// By calls of its methods, where torch has no such interface yet.
bool read_methods(PyObject* from, Array* to) {
  int64_t found[2];
  const char* const names[] = {"data_ptr", "numel"};
  for (int i = 0; i < 2; ++i) {
    PyObject* value = PyObject_CallMethod(from, names[i], nullptr);
    const bool is_integer = value && to_integer(value, &found[i]);
    Py_XDECREF(value);
    if (!is_integer) return false;
  }
  *to = {static_cast<uintptr_t>(found[0]), found[1], 0};
  return true;
}

}  // namespace

bool use(nanobind::handle type, nanobind::handle parameter, nanobind::handle capsule) {
  const auto* exchange = static_cast<const Exchange*>(
      PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (!exchange) throw nanobind::python_error();
  if (!PyType_Check(type.ptr()) || !PyType_Check(parameter.ptr()))
    throw nanobind::type_error("give the classes of tensors and parameters");
  if (exchange->version.major != 1 || !exchange->view) return false;
  if (!is_neg_) is_neg_ = PyUnicode_InternFromString("is_neg");
  if (!is_neg_) throw nanobind::python_error();
  type_ = reinterpret_cast<PyTypeObject*>(type.inc_ref().ptr());
  parameter_ = reinterpret_cast<PyTypeObject*>(parameter.inc_ref().ptr());
  exchange_ = exchange;
  return true;
}

bool are_fit(nanobind::list tensors) {
  if (!exchange_) throw nanobind::value_error("read_tensors comes first");
  for (size_t i = 0; i < tensors.size(); ++i)
    if (!is_fit(PyList_GET_ITEM(tensors.ptr(), static_cast<Py_ssize_t>(i)), i == 0)) {
      PyErr_Clear();
      return false;
    }
  return true;
}

bool read(PyObject* from, Array* to) noexcept {
  const bool done = !exchange_                        ? read_methods(from, to)
                    : PyObject_TypeCheck(from, type_) && read_view(from, to);
  if (!done) PyErr_Clear();
  return done;
}

}  // namespace tensors
