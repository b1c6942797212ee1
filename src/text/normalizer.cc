#include "text/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <utility>

#include "base/error.h"

namespace quatrain {
namespace {

// Code points below U+0300 neither compose with each other nor, in NFC, decompose; their lead bytes
// are below 0xCC.
bool IsTriviallyNfc(const std::string& text) {
  return std::all_of(text.begin(), text.end(),
                     [](char byte) { return static_cast<unsigned char>(byte) < 0xCC; });
}

}  // namespace

Normalizer Normalizer::FromJson(const Json& config, const std::string& where) {
  Normalizer normalizer;
  if (config.is_null()) return normalizer;
  const std::string type = config.is_object() ? config.value("type", "") : "";
  if (type == "Sequence" && config.contains("normalizers") && config["normalizers"].is_array()) {
    for (const Json& part : config["normalizers"]) {
      const Normalizer inner = FromJson(part, where);
      normalizer.forms_.insert(normalizer.forms_.end(), inner.forms_.begin(), inner.forms_.end());
    }
    return normalizer;
  }
  static constexpr std::pair<const char*, Form> kForms[] = {
      {"NFC", Form::kNfc}, {"NFD", Form::kNfd}, {"NFKC", Form::kNfkc}, {"NFKD", Form::kNfkd}};
  for (const auto& [name, form] : kForms) {
    if (type == name) {
      normalizer.forms_.push_back(form);
      return normalizer;
    }
  }
  throw Error(ErrorCode::kData, {.where = where,
                                 .what = "this normalizer is not supported",
                                 .expected = "NFC, NFD, NFKC, NFKD, a Sequence of them, or null",
                                 .found = type.empty() ? DumpJson(config) : type,
                                 .todo = "Use a model with a byte-level BPE tokenizer."});
}

std::string Normalizer::Apply(std::string text) const {
  for (const Form form : forms_) text = ApplyForm(std::move(text), form);
  return text;
}

std::string Normalizer::ApplyForm(std::string text, Form form) {
  if (form == Form::kNfc && IsTriviallyNfc(text)) return text;
  int options = UTF8PROC_STABLE;
  options |= form == Form::kNfc || form == Form::kNfkc ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
  if (form == Form::kNfkc || form == Form::kNfkd) options |= UTF8PROC_COMPAT;
  utf8proc_uint8_t* mapped = nullptr;
  const utf8proc_ssize_t size = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                             static_cast<utf8proc_ssize_t>(text.size()), &mapped,
                                             static_cast<utf8proc_option_t>(options));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(mapped, &std::free);
  QT_CHECK(size >= 0, "utf8proc: {}", utf8proc_errmsg(size));
  return std::string(reinterpret_cast<const char*>(mapped), static_cast<size_t>(size));
}

}  // namespace quatrain
