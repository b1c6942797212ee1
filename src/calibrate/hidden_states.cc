#include "calibrate/hidden_states.h"

#include "base/error.h"

namespace quatrain {

namespace fs = std::filesystem;

HiddenStates::HiddenStates(std::vector<int64_t> num_tokens, int64_t hidden_size,
                           std::optional<fs::path> folder, std::string name)
    : num_tokens_(std::move(num_tokens)),
      hidden_size_(hidden_size),
      folder_(std::move(folder)),
      name_(std::move(name)),
      current_(num_tokens_.size()),
      next_(num_tokens_.size()) {
  uint64_t offset = 0;
  for (const int64_t tokens : num_tokens_) {
    offsets_.push_back(offset);
    offset += sizeof(BFloat16) * static_cast<uint64_t>(tokens * hidden_size);
  }
  offsets_.push_back(offset);
}

fs::path HiddenStates::FileOf(int64_t layer) const {
  return *folder_ / fmt::format("{}-{}.bin", name_, layer);
}

void HiddenStates::Resume(int64_t layer) {
  QT_CHECK(folder_.has_value());
  const fs::path file = FileOf(layer);
  std::error_code error;
  const uint64_t size = fs::file_size(file, error);
  if (error || size != size_bytes()) {
    throw Error(ErrorCode::kData,
                {.where = file.string(),
                 .what = "the hidden states that an earlier process left are missing or damaged",
                 .expected = fmt::format("{} bytes", size_bytes()),
                 .found = error ? error.message() : fmt::format("{}", size)});
  }
  layer_ = layer;
  reader_ = std::make_unique<FileReader>(file);
}

at::Tensor HiddenStates::ReadFrom(const FileReader& reader, size_t entry) const {
  at::Tensor x_TD = EmptyTensor({num_tokens_.at(entry), hidden_size_}, at::kBFloat16);
  reader.ReadAt(offsets_[entry], {static_cast<std::byte*>(x_TD.mutable_data_ptr()), x_TD.nbytes()});
  return x_TD;
}

at::Tensor HiddenStates::Read(size_t entry) const {
  if (!folder_.has_value()) return current_.at(entry);
  QT_CHECK(reader_ != nullptr);
  return ReadFrom(*reader_, entry);
}

at::Tensor HiddenStates::ReadWritten(size_t entry) const {
  if (!folder_.has_value()) return next_.at(entry);
  QT_CHECK(written_ != nullptr);
  return ReadFrom(*written_, entry);
}

void HiddenStates::Write(size_t entry, const at::Tensor& x_TD) {
  QT_CHECK(x_TD.scalar_type() == at::kBFloat16 && x_TD.is_contiguous() &&
           x_TD.size(0) == num_tokens_.at(entry) && x_TD.size(1) == hidden_size_);
  if (!folder_.has_value()) {
    next_[entry] = x_TD;
    return;
  }
  if (writer_ == nullptr) {
    writer_ = std::make_unique<FileWriter>(FileOf(layer_ + 1));
    written_ = std::make_unique<FileReader>(FileOf(layer_ + 1));
  }
  writer_->WriteAt(offsets_[entry],
                   {static_cast<const std::byte*>(x_TD.const_data_ptr()), x_TD.nbytes()});
}

void HiddenStates::Advance() {
  ++layer_;
  if (!folder_.has_value()) {
    current_ = std::move(next_);
    next_.assign(current_.size(), {});
    return;
  }
  // Behind the last layer nothing may have been written; the file has its full size all the same.
  if (writer_ == nullptr) writer_ = std::make_unique<FileWriter>(FileOf(layer_));
  writer_->Resize(size_bytes());
  writer_->Close();
  writer_.reset();
  written_.reset();
  reader_ = std::make_unique<FileReader>(FileOf(layer_));
}

void HiddenStates::DropOlder() {
  if (!folder_.has_value()) return;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(*folder_)) {
    const std::string name = entry.path().filename().string();
    const bool is_ours = name.starts_with(name_ + "-") && name.ends_with(".bin");
    if (is_ours && entry.path() != FileOf(layer_)) fs::remove(entry.path(), ignored);
  }
}

}  // namespace quatrain
