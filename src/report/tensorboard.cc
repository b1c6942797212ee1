#include "report/tensorboard.h"

#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <chrono>
#include <span>
#include <system_error>

#include "base/error.h"

namespace quatrain {
namespace {

constexpr std::array<uint32_t, 256> MakeCrcTable() {
  std::array<uint32_t, 256> table = {};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82F63B78u : 0u);
    table[byte] = crc;
  }
  return table;
}
constexpr std::array<uint32_t, 256> kCrcTable = MakeCrcTable();

// Bare CRCs of data that holds CRCs are weak, hence the mask (the source named in the header).
uint32_t MaskedCrc(std::string_view bytes) {
  const uint32_t crc = Crc32c(bytes);
  return ((crc >> 15) | (crc << 17)) + 0xA282EAD8u;
}

template <class Integer>
void AppendLittleEndian(Integer value, std::string& out) {
  for (size_t i = 0; i < sizeof(Integer); ++i) out += static_cast<char>((value >> (8 * i)) & 0xFF);
}

// Field numbers of Event, Summary, Summary.Value and SessionLog, with their wire types.
enum WireType : uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };
constexpr uint32_t kEventWallTime = 1, kEventStep = 2, kEventFileVersion = 3, kEventSummary = 5,
                   kEventSessionLog = 7;
constexpr uint32_t kSummaryValue = 1, kValueTag = 1, kValueSimpleValue = 2;
constexpr uint32_t kSessionLogStatus = 1, kSessionStart = 1;

void AppendVarint(uint64_t value, std::string& out) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>((value & 0x7F) | 0x80);
  out += static_cast<char>(value);
}

void AppendKey(uint32_t field, WireType type, std::string& out) {
  AppendVarint((field << 3) | type, out);
}

void AppendBytes(uint32_t field, std::string_view bytes, std::string& out) {
  AppendKey(field, kBytes, out);
  AppendVarint(bytes.size(), out);
  out += bytes;
}

std::string EventHead(double wall_time, int64_t step) {
  std::string event;
  AppendKey(kEventWallTime, kFixed64, event);
  AppendLittleEndian(std::bit_cast<uint64_t>(wall_time), event);
  AppendKey(kEventStep, kVarint, event);
  AppendVarint(static_cast<uint64_t>(step), event);
  return event;
}

double Now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::string HostName() {
  std::array<char, 256> name = {};
  return gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "localhost";
}

}  // namespace

uint32_t Crc32c(std::string_view bytes) {
  uint32_t crc = 0xFFFFFFFFu;
  for (const char c : bytes) crc = (crc >> 8) ^ kCrcTable[(crc ^ static_cast<uint8_t>(c)) & 0xFF];
  return ~crc;
}

std::string EncodeScalarEvent(const ScalarEvent& event) {
  std::string summary;
  for (const auto& [tag, number] : event.scalars) {
    std::string value;
    AppendBytes(kValueTag, tag, value);
    AppendKey(kValueSimpleValue, kFixed32, value);
    AppendLittleEndian(std::bit_cast<uint32_t>(number), value);
    AppendBytes(kSummaryValue, value, summary);
  }
  std::string bytes = EventHead(event.wall_time, event.step);
  AppendBytes(kEventSummary, summary, bytes);
  return bytes;
}

std::string FrameRecord(std::string_view event) {
  std::string record;
  AppendLittleEndian(static_cast<uint64_t>(event.size()), record);
  AppendLittleEndian(MaskedCrc(record), record);
  record += event;
  AppendLittleEndian(MaskedCrc(event), record);
  return record;
}

TensorBoardWriter::TensorBoardWriter(const std::filesystem::path& folder,
                                     std::optional<int64_t> first_step) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) {
    throw Error(ErrorCode::kIo, {.where = folder.string(),
                                 .what = "cannot create the folder (" + error.message() + ")",
                                 .todo = "Choose another --tensorboard-dir"});
  }
  const double now = Now();
  path_ = folder / fmt::format("events.out.tfevents.{:010}.{}.{}", static_cast<int64_t>(now),
                               HostName(), getpid());
  file_.emplace(path_);
  std::string version = EventHead(now, 0);
  AppendBytes(kEventFileVersion, "brain.Event:2", version);
  Write(version);
  if (!first_step) return;
  std::string log, start = EventHead(now, *first_step);
  AppendKey(kSessionLogStatus, kVarint, log);
  AppendVarint(kSessionStart, log);
  AppendBytes(kEventSessionLog, log, start);
  Write(start);
}

void TensorBoardWriter::Append(const Json& row) {
  ScalarEvent event{.wall_time = Now(), .step = row.at("rollout").get<int64_t>(), .scalars = {}};
  for (const auto& item : row.items()) {
    if (item.key() == "rollout" || !item.value().is_number()) continue;
    event.scalars.emplace_back(item.key(), item.value().get<float>());
  }
  Write(EncodeScalarEvent(event));
}

void TensorBoardWriter::Write(std::string_view event) {
  const std::string record = FrameRecord(event);
  file_->Write(std::as_bytes(std::span(record)));
}

}  // namespace quatrain
