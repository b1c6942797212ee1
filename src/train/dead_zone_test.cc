#include "train/dead_zone.h"

#include "train/test_support.h"

namespace quatrain {
namespace {

// The small model in groups of 32, and masters that the test moves by hand.
class DeadZone : public SmallMoeTest {
 protected:
  void SetUp() override {
    SmallMoeTest::SetUp();
    table_.emplace(TableWithExpertCodes());
    for (size_t i = 0; i < table_->size(); ++i) {
      if ((*table_)[i].is_quantized()) quantised_.push_back(i);
    }
    parameters_.emplace(ctx_, *start_, &*table_, nullptr, OptimizerConfig{}, QuantScheme{},
                        MasterStart::kValues);
  }
  void TearDown() override {
    parameters_.reset();
    table_.reset();
    SmallMoeTest::TearDown();
  }

  // Puts one weight at `code` widths under the group's scale; the extremum stays.
  void Put(size_t index, int64_t column, float code) {
    const float scale = ToFloat((*table_)[index].codes.scale[0]);
    DataOf<float>(parameters_->master(index))[column] = code * scale;
    parameters_->Restore(ctx_, parameters_->step());
  }
  // A column of row 0 that is not the extremum of its group of 32.
  int64_t ColumnOf(size_t index) {
    const at::Tensor row = parameters_->master(index)[0].narrow(0, 0, 32).abs();
    return row.argmin().item<int64_t>();
  }
  DeadZoneStats Sum(const DeadZoneMonitor& monitor) {
    DeadZoneStats sum;
    for (const auto& [layer, stats] : monitor.layers()) sum.Add(stats);
    return sum;
  }

  ThreadPool pool_{2};
  OpContext ctx_{pool_};
  std::optional<ModelWeights> table_;
  std::optional<Parameters> parameters_;
  std::vector<size_t> quantised_;
};

TEST_F(DeadZone, AFlipIsCountedOnceAndAFlipBackAsSuch) {
  const size_t index = quantised_[0];
  const int64_t column = ColumnOf(index);
  Put(index, column, 1.2f);
  DeadZoneMonitor monitor(*table_);
  monitor.Observe(ctx_, *parameters_);
  EXPECT_EQ(Sum(monitor).num_flips, 0);
  const auto step = [&](float code) {
    Put(index, column, code);
    monitor.Observe(ctx_, *parameters_);
    const DeadZoneStats stats = Sum(monitor);
    return std::pair<int64_t, int64_t>(stats.num_flips, stats.num_flips_back);
  };
  EXPECT_EQ(step(1.4f), (std::pair<int64_t, int64_t>(0, 0)));
  EXPECT_EQ(step(1.6f), (std::pair<int64_t, int64_t>(1, 0))) << "from 1 to 2";
  EXPECT_EQ(step(1.6f), (std::pair<int64_t, int64_t>(0, 0)));
  EXPECT_EQ(step(1.4f), (std::pair<int64_t, int64_t>(1, 1))) << "and back to 1";
  EXPECT_EQ(step(-0.7f), (std::pair<int64_t, int64_t>(1, 0))) << "to -1, new";
  EXPECT_EQ(step(2.0f), (std::pair<int64_t, int64_t>(1, 0)));
  EXPECT_EQ(step(-1.0f), (std::pair<int64_t, int64_t>(1, 1)));
  Json row;
  monitor.AppendTo(row);
  const int64_t layer = (*table_)[index].spec.layer;
  const double in_layer = static_cast<double>(monitor.layers().at(layer).num_codes);
  EXPECT_EQ(row.at(fmt::format("qat/code_flip_back_rate/layer_{}", layer)).get<double>(),
            1.0 / in_layer);
  EXPECT_LT(row.at("train/code_flip_back_rate").get<double>(), 1.0 / in_layer);
}

TEST_F(DeadZone, DistancesToTheBoundaryFallIntoBinsAndScalesDrift) {
  const size_t index = quantised_[1];
  const int64_t column = ColumnOf(index);
  DeadZoneMonitor monitor(*table_);
  const auto bins = [&](float code) {
    Put(index, column, code);
    monitor.Observe(ctx_, *parameters_);
    return Sum(monitor).boundary_distance;
  };
  const auto centre = bins(2.0f), edge = bins(2.49f), middle = bins(2.26f);
  EXPECT_EQ(centre[9] - edge[9], 1);
  EXPECT_EQ(edge[0] - centre[0], 1);
  EXPECT_EQ(middle[4] - edge[4], 1);
  EXPECT_EQ(Sum(monitor).scale_drift, 0.0);
  // Twice the extremum: this group's scale doubles.
  at::Tensor group = parameters_->master(index)[0].narrow(0, 0, 32);
  group[group.abs().argmax()].mul_(2.0);
  parameters_->Restore(ctx_, 0);
  monitor.Observe(ctx_, *parameters_);
  EXPECT_NEAR(Sum(monitor).scale_drift, 1.0, 0.01);
}

TEST_F(DeadZone, ARestoredMonitorGoesOnCounting) {
  const size_t index = quantised_[0];
  const int64_t column = ColumnOf(index);
  Put(index, column, 1.0f);
  DeadZoneMonitor monitor(*table_);
  Put(index, column, 2.0f);
  monitor.Observe(ctx_, *parameters_);
  TrainingSnapshot snapshot = SnapshotTraining(*parameters_, Json::object(), SnapshotMode::kBorrow);
  monitor.AddTo(snapshot);
  SaveTrainingState(snapshot, folder_ / "state");
  DeadZoneMonitor restored(*table_);
  restored.Restore(folder_ / "state");
  Put(index, column, 1.0f);
  restored.Observe(ctx_, *parameters_);
  EXPECT_EQ(Sum(restored).num_flips_back, 1);
  // A state without it: the count begins anew.
  SaveTrainingState(SnapshotTraining(*parameters_, Json::object(), SnapshotMode::kBorrow),
                    folder_ / "plain");
  restored.Restore(folder_ / "plain");
  Put(index, column, 2.0f);
  restored.Observe(ctx_, *parameters_);
  EXPECT_EQ(Sum(restored).num_flips, 1);
  EXPECT_EQ(Sum(restored).num_flips_back, 0);
}

}  // namespace
}  // namespace quatrain
