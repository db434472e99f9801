#include "tensors.h"

namespace tensors {
namespace {

constexpr int32_t kCpu = 1;

// Set once, when the module's user is imported.
PyTypeObject* type_ = nullptr;
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

bool to_integer(PyObject* from, int64_t* to) {
  *to = from ? PyLong_AsLongLong(from) : -1;
  return !PyErr_Occurred();
}

bool read_pair(PyObject* from, Array* to) {
  int64_t address = 0, elements = 0;
  if (PyTuple_GET_SIZE(from) != 2 ||
      !to_integer(PyTuple_GET_ITEM(from, 0), &address) ||
      !to_integer(PyTuple_GET_ITEM(from, 1), &elements))
    return false;
  *to = {static_cast<uintptr_t>(address), elements, 0};
  return true;
}

bool read_view(PyObject* from, Array* to) {
  View view{};
  if (exchange_->view(from, &view) != 0) return false;
  if (view.device.type != kCpu || view.dtype.lanes != 1 || !is_contiguous(view))
    return false;
  int64_t elements = 1;
  for (int axis = 0; axis < view.axes; ++axis) elements *= view.shape[axis];
  *to = {reinterpret_cast<uintptr_t>(view.data) + view.byte_offset, elements,
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

void use(nanobind::handle type, nanobind::handle capsule) {
  const auto* exchange = static_cast<const Exchange*>(
      PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (!exchange) throw nanobind::python_error();
  if (!PyType_Check(type.ptr())) throw nanobind::type_error("give the tensors' class");
  if (exchange->version.major != 1 || !exchange->view) return;
  type_ = reinterpret_cast<PyTypeObject*>(type.inc_ref().ptr());
  exchange_ = exchange;
}

bool read(PyObject* from, Array* to) noexcept {
  const bool done = PyTuple_CheckExact(from) ? read_pair(from, to)
                    : exchange_ && PyObject_TypeCheck(from, type_)
                        ? read_view(from, to)
                        : read_methods(from, to);
  if (!done) PyErr_Clear();
  return done;
}

}  // namespace tensors
