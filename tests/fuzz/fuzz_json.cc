// A JSON text, and the config.json that it may be: what is taken reads back from what is written.
#include "base/json.h"
#include "models/model_config.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quatrain;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  Json json;
  if (!fuzz::Accepts([&] { json = ParseJson(text, "fuzz.json"); })) return 0;
  fuzz::Require(nlohmann::json::accept(text), "a text that is no JSON was taken");
  // A number beyond a double's range is none of ours to keep.
  Json again;
  fuzz::Require(fuzz::Accepts([&] { again = ParseJson(DumpJson(json), "again"); }),
                "what was written does not read back");
  fuzz::Require(DumpJson(again) == DumpJson(json), "what was written reads back differently");
  ModelConfig config;
  if (fuzz::Accepts([&] { config = ParseModelConfig(json, "config.json"); })) {
    fuzz::Require(config.num_attention_heads > 0 && config.num_key_value_heads > 0 &&
                      config.num_attention_heads % config.num_key_value_heads == 0 &&
                      config.head_dim > 0 && config.hidden_size > 0 && config.vocab_size > 0,
                  "a configuration of no model was taken");
    fuzz::Require(RopeInverseFrequencies(config).size() == static_cast<size_t>(config.head_dim / 2),
                  "rope frequencies");
  }
  return 0;
}
