// The Python face of `vidk._C`: importing it loads the object, whose static initialisers register
// the CPU kernels. Tensors never pass through here, only what build_info() asks.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <exception>

#include "common/isa.h"

namespace {

PyObject* cpu_isa(PyObject*, PyObject*) {
  try {
    return PyUnicode_FromString(vidk::isa_name(vidk::cpu_isa()));
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

PyMethodDef methods[] = {
    {"cpu_isa", cpu_isa, METH_NOARGS, "Name of the instruction set that the CPU kernels use."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    "_C",
    "CPU kernels of vidk.",
    0,
    methods,
    nullptr,
    nullptr,
    nullptr,
    nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
