// Prints a launch plan as JSON, for test_plans.py: what the product launches, without a GPU.
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <map>
#include <string>

#include "attention/attention_plan.h"
#include "kv_cache/kv_cache_plan.h"

namespace {

using namespace vidk;

std::map<std::string, long long> number;  // the command line: name=value

ByteView view(const std::string& name, int64_t tokens, int64_t address) {
  const int64_t dim = number["dim_bytes"];
  const int64_t heads = number["heads"];
  const int64_t token_stride =
      number.count(name + "_token") ? number[name + "_token"] : heads * dim;
  ByteView x{};
  x.data = reinterpret_cast<char*>(number.count(name) ? number[name] : address);
  x.batch = number["batch"];
  x.tokens = tokens;
  x.heads = heads;
  x.dim = dim;
  x.batch_stride = tokens * token_stride;
  x.token_stride = token_stride;
  x.head_stride = dim;
  return x;
}

template <class T>
void print(const char* name, const T* begin, size_t count, const char* end = ",\n") {
  std::printf("\"%s\": [", name);
  for (size_t i = 0; i < count; ++i) {
    std::printf("%s%llu", i ? ", " : "", static_cast<unsigned long long>(begin[i]));
  }
  std::printf("]%s", end);
}

void print(const LaunchPlan& plan) {
  std::printf("{\"kernel\": \"%s\",\n\"shared_bytes\": %u,\n", plan.kernel.c_str(),
              plan.shared_bytes);
  print("grid", plan.grid, 3);
  print("block", plan.block, 3);
  print("offset", plan.args.offset.data(), plan.args.offset.size());
  print("bytes", reinterpret_cast<const unsigned char*>(plan.args.bytes.data()),
        plan.args.bytes.size());
  std::printf("\"maps\": [");
  for (size_t i = 0; i < plan.args.maps.size(); ++i) {
    const TensorMap& map = plan.args.maps[i];
    std::printf("%s{\"offset\": %zu, \"base\": %llu, \"swizzle\": %u, \"element_bytes\": %u,\n",
                i ? ",\n" : "", plan.args.map_at[i], static_cast<unsigned long long>(map.base),
                static_cast<unsigned>(map.swizzle), map.element_bytes);
    print("dim", map.dim, map.rank);
    print("stride", map.stride, map.rank - 1);
    print("box", map.box, map.rank, "}");
  }
  std::printf("]}\n");
}

LaunchPlan attention(const DeviceInfo& device) {
  AttentionArgs args{};
  args.element = static_cast<Element>(number["element"]);
  args.q = view("q", number["tokens"], 0x10000);
  args.k = view("k", number["capacity"], 0x20000);
  args.v = view("v", number["capacity"], 0x30000);
  args.out = reinterpret_cast<void*>(0x40000);
  args.lse = reinterpret_cast<float*>(number["lse"]);
  args.lens = reinterpret_cast<const int32_t*>(0x60000);
  args.fold = number["fold"];
  args.len_per_batch = number["len_per_batch"];
  args.scale = static_cast<float>(number["scale_percent"]) / 100;
  return plan_attention("attention", args,
                        attention_choice("attention", std::getenv("VIDK_ATTENTION")), device);
}

LaunchPlan kv_cache_write(const DeviceInfo& device) {
  const int64_t tokens = number["tokens"];
  const int64_t capacity = number["capacity"];
  return plan_kv_cache_write(
      {view("k", tokens, 0x10000), view("v", tokens, 0x20000), view("k_cache", capacity, 0x30000),
       view("v_cache", capacity, 0x40000), reinterpret_cast<const int32_t*>(0x50000),
       number["frame_tokens"]},
      device);
}

}  // namespace

int main(int argc, char** argv) {
  for (int i = 2; i < argc; ++i) {
    const std::string word = argv[i];
    const size_t at = word.find('=');
    number[word.substr(0, at)] = std::stoll(word.substr(at + 1), nullptr, 0);
  }
  const DeviceInfo device{static_cast<int32_t>(number["capability"]), 132};
  try {
    print(std::string(argv[1]) == "attention" ? attention(device) : kv_cache_write(device));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s", error.what());
    return 1;
  }
}
