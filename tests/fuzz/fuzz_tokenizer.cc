// A tokenizer.json: what is taken encodes and decodes without harm, to ids that it has.
#include "tests/fuzz/fuzz.h"
#include "text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quatrain;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  fuzz::Accepts([&] {
    const Tokenizer tokenizer = Tokenizer::FromJson(text, "tokenizer.json");
    for (const char* sample :
         {"", "Hello there, what's 12 + 345?\n\n  x<|im_end|>", "\xC3\xA9\xFF\xF0\x9F\x98\x80"}) {
      const std::vector<int32_t> ids = tokenizer.Encode(sample);
      for (const int32_t id : ids) {
        fuzz::Require(id >= 0 && id < tokenizer.vocab_size(), "an id beyond the vocabulary");
        tokenizer.TokenBytes(id);
      }
      tokenizer.Decode(ids);
      tokenizer.Decode(ids, SpecialTokens::kSkip);
    }
    for (const int32_t id : {-1, 0, 1 << 30}) tokenizer.TokenBytes(id);
  });
  return 0;
}
