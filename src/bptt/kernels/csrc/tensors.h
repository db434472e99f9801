// Tensors as arguments of the Python module: where their memory is and how much of it.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>

// Memory of the caller.
struct Array {
  uintptr_t address = 0;
  int64_t elements = 0;
  int bits = 0;  // of an element; 0 where they are not known

  bool operator==(const Array& other) const {
    return address == other.address && elements == other.elements && bits == other.bits;
  }
};

namespace tensors {

// The part of DLPack's C interface that is used here (version 1 of its ABI): tensors are
// read in 0.1 us, and in 1 us by calls of their methods.
struct View {
  void* data;
  struct {
    int32_t type, id;
  } device;
  int32_t axes;
  struct {
    uint8_t code, bits;
    uint16_t lanes;
  } dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

struct Exchange {
  struct {
    uint32_t major, minor;
  } version;
  void* previous;
  void* allocate;
  void* take;
  void* give;
  int (*view)(void* tensor, View* to);  // may be null
};

// Reads tensors of `type` through `capsule`, their class's `__dlpack_c_exchange_api__`;
// false if that is of no use here.
bool use(nanobind::handle type, nanobind::handle parameter, nanobind::handle capsule);

// Whether the tensors, after `use`, are as the core takes them: of that very class or of
// `parameter`, float32 (the first may be int64), on the CPU, contiguous, their memory as
// it reads.
bool are_fit(nanobind::list tensors);

// False, without a Python error, for what is no contiguous tensor on the CPU.
bool read(PyObject* from, Array* to) noexcept;

}  // namespace tensors

template <>
struct nanobind::detail::type_caster<Array> {
  NB_TYPE_CASTER(Array, const_name("torch.Tensor"))
  bool from_python(handle from, uint8_t, cleanup_list*) noexcept {
    return tensors::read(from.ptr(), &value);
  }
};
