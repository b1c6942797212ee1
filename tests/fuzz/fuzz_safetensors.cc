// A safetensors file: what is taken has a header that fits its bytes.
#include <cstring>
#include <span>

#include "base/json.h"
#include "io/safetensors.h"
#include "tests/fuzz/fuzz.h"

namespace {

volatile std::byte last_byte;

using quatrain::Json, quatrain::SafetensorsContent, quatrain::TensorView, quatrain::fuzz::Require;

// Written anew from the format's description.
void CheckContent(std::span<const std::byte> bytes, const SafetensorsContent& content) {
  uint64_t header_bytes = 0;
  Require(bytes.size() >= 8, "a file without a header was taken");
  std::memcpy(&header_bytes, bytes.data(), 8);
  Require(header_bytes <= bytes.size() - 8, "a header longer than the file was taken");
  const std::string text(reinterpret_cast<const char*>(bytes.data()) + 8, header_bytes);
  const Json header = Json::parse(text, nullptr, false);
  Require(header.is_object(), "a header that is no object was taken");
  size_t data_bytes = 0;
  for (const TensorView& tensor : content.tensors) {
    const Json& entry = header.at(tensor.name);
    const auto begin = entry.at("data_offsets").at(0).get<uint64_t>();
    const auto end = entry.at("data_offsets").at(1).get<uint64_t>();
    Require(begin == data_bytes && end - begin == tensor.bytes.size(), "ranges with gaps");
    Require(entry.at("shape").get<std::vector<int64_t>>() == tensor.shape, "another shape");
    Require(quatrain::BytesOf(tensor.dtype, tensor.shape) == tensor.bytes.size(), "another size");
    data_bytes += tensor.bytes.size();
    for (const std::byte byte : tensor.bytes) last_byte = byte;  // all of them must be readable
  }
  Require(8 + header_bytes + data_bytes == bytes.size(), "bytes behind the last tensor");
  Require(content.tensors.size() + header.contains("__metadata__") == header.size(), "a lost name");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::filesystem::path path = "fuzz.safetensors";
  const std::span<const std::byte> bytes = std::as_bytes(std::span(data, size));
  quatrain::fuzz::Accepts([&] { CheckContent(bytes, quatrain::ParseSafetensors(bytes, path)); });
  return 0;
}
