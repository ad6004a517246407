// The element types that kernels are compiled for. No torch header.
#pragma once

namespace vidk {

enum class Element { kFloat32, kBFloat16, kFloat16 };

// As the names of device code have it.
inline const char* element_name(Element element) {
  switch (element) {
    case Element::kBFloat16:
      return "bf16";
    case Element::kFloat16:
      return "f16";
    case Element::kFloat32:
      break;
  }
  return "f32";
}

}  // namespace vidk
