#include "text/byte_level.h"

#include <array>
#include <cstdint>

#include "text/utf8.h"

namespace quatrain {
namespace {

constexpr int kNumBytes = 256;
constexpr int kFirstSpare =
    0x100;  // bytes without a printable character of their own go here, in order

constexpr bool IsPrintable(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) ||
         (byte >= 0xAE && byte <= 0xFF);
}

constexpr std::array<int32_t, kNumBytes> MakeCodePoints() {
  std::array<int32_t, kNumBytes> code_points{};
  int spare = kFirstSpare;
  for (int byte = 0; byte < kNumBytes; ++byte) {
    code_points[byte] = IsPrintable(byte) ? byte : spare++;
  }
  return code_points;
}

constexpr std::array<int32_t, kNumBytes> kCodePointOfByte = MakeCodePoints();

constexpr int kNumCodePoints = 0x144;  // 0x100 + 68 spare ones

constexpr std::array<int16_t, kNumCodePoints> MakeBytes() {
  std::array<int16_t, kNumCodePoints> bytes{};
  for (int16_t& byte : bytes) byte = -1;
  for (int byte = 0; byte < kNumBytes; ++byte) {
    bytes[kCodePointOfByte[byte]] = static_cast<int16_t>(byte);
  }
  return bytes;
}

constexpr std::array<int16_t, kNumCodePoints> kByteOfCodePoint = MakeBytes();

}  // namespace

std::string BytesOfTokenText(std::string_view token_text) {
  std::string bytes;
  for (size_t offset = 0; offset < token_text.size();) {
    const Utf8Char character = DecodeUtf8At(token_text, offset);
    offset += character.num_bytes;
    if (!character.is_valid || character.code_point >= kNumCodePoints ||
        kByteOfCodePoint[character.code_point] < 0) {
      return std::string(token_text);
    }
    bytes.push_back(static_cast<char>(kByteOfCodePoint[character.code_point]));
  }
  return bytes;
}

std::string TokenTextOfBytes(std::string_view bytes) {
  std::string text;
  for (const char byte : bytes) AppendUtf8(kCodePointOfByte[static_cast<uint8_t>(byte)], &text);
  return text;
}

}  // namespace quatrain
