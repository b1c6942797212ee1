#include "calibrate/gptq.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <vector>

#include "base/error.h"
#include "base/random.h"
#include "kernels/int4_quantize.h"

namespace quatrain {
namespace {

using Codes = std::vector<int8_t>;

struct Problem {
  int64_t rows = 0, columns = 0;
  std::vector<BFloat16> weight;
  Hessian hessian;

  WeightMatrix Weight() const { return {weight.data(), rows, columns}; }
};

GptqResult Quantize(const Problem& problem, const GptqOptions& options, int num_threads = 2) {
  ThreadPool pool(num_threads);
  const HessianFactor factor = FactorHessian(pool, problem.hessian, options, "w");
  return QuantizeWeight(pool, problem.Weight(), problem.hessian, factor, options, "w");
}

std::vector<BFloat16> ToBFloat16s(const std::vector<double>& values) {
  std::vector<BFloat16> result;
  for (const double value : values) result.push_back(ToBFloat16(static_cast<float>(value)));
  return result;
}

// The worked example of 24 tokens, 8 features and 3 rows; its numbers were computed with
// llm-compressor.
Problem SmallProblem() {
  const auto base = [](int t, int k) {
    return ((7 * t + 13 * k + 5 * t * k) % 17 - 8) / 8.0 * (1 + k % 3);
  };
  std::vector<double> inputs, weight;
  for (int t = 0; t < 24; ++t) {
    for (int k = 0; k < 8; ++k) inputs.push_back(base(t, k) + (k > 0 ? base(t, k - 1) / 2 : 0.0));
  }
  for (int n = 0; n < 3; ++n) {
    for (int k = 0; k < 8; ++k) {
      weight.push_back(((11 * n + 5 * k + 3 * n * k + 7) % 31 - 15) / 32.0);
    }
  }
  Problem problem{3, 8, ToBFloat16s(weight), Hessian(8)};
  ThreadPool pool(1);
  AccumulateHessian(pool, ToBFloat16s(inputs).data(), 24, problem.hessian);
  return problem;
}

GptqOptions Reference(int num_bits, ActOrder actorder, int64_t group_size = 4) {
  GptqOptions options = ReferenceGptqOptions(num_bits, group_size);
  options.actorder = actorder;
  return options;
}

std::vector<int32_t> Packed(const Codes& codes, int64_t rows, int num_bits) {
  const int64_t columns = static_cast<int64_t>(codes.size()) / rows;
  std::vector<int32_t> packed(static_cast<size_t>(rows * PackedWords(columns, num_bits)));
  PackCodes(codes.data(), rows, columns, num_bits, packed.data());
  return packed;
}

// The same quantiser without feedback: an identity Hessian.
Codes NearestCodes(Problem problem, const GptqOptions& options) {
  problem.hessian = Hessian(problem.columns);
  for (int64_t i = 0; i < problem.columns; ++i) problem.hessian.At(i, i) = 1.0f;
  return Quantize(problem, options).codes_OI;
}

double Loss(const Problem& problem, const Codes& codes, const std::vector<BFloat16>& scale_OG,
            int64_t group_size) {
  std::vector<float> error;
  for (size_t at = 0; at < codes.size(); ++at) {
    const BFloat16 w = DequantizeCode(codes[at], scale_OG[at / static_cast<size_t>(group_size)]);
    error.push_back(ToFloat(problem.weight[at]) - ToFloat(w));
  }
  ThreadPool pool(1);
  double loss = 0.0;
  const auto load_row = [&](int64_t row, float* error_I) {
    std::copy_n(error.data() + row * problem.columns, problem.columns, error_I);
  };
  for (double row : OutputError(pool, problem.hessian, problem.rows, load_row)) loss += row;
  return loss;
}

std::vector<double> AsDoubles(const std::vector<BFloat16>& values) {
  std::vector<double> result;
  for (const BFloat16 value : values) result.push_back(static_cast<double>(ToFloat(value)));
  return result;
}

TEST(GptqReference, HessianOfTheWorkedExample) {
  const Problem problem = SmallProblem();
  const std::vector<float> expected = {18.21875f,   64.6171875f, 24.625f,   19.375f,
                                       64.0078125f, 167.96875f,  50.90625f, 66.5859375f};
  for (int64_t i = 0; i < 8; ++i)
    EXPECT_EQ(problem.hessian.At(i, i), expected[static_cast<size_t>(i)]);
  EXPECT_EQ(problem.hessian.At(0, 1), -3.828125f);
  ThreadPool pool(1);
  const HessianFactor factor =
      FactorHessian(pool, problem.hessian, Reference(4, ActOrder::kNone), "w");
  EXPECT_FLOAT_EQ(factor.added_I[0], 0.595380859375f);
}

TEST(GptqReference, Int4WithoutOrder) {
  const GptqResult result = Quantize(SmallProblem(), Reference(4, ActOrder::kNone));
  EXPECT_EQ(result.codes_OI, (Codes{-7, -3, 2,  6,  6, -7, -6, -2, 2,  7, -8, -3,
                                    2,  7,  -6, -2, 7, -3, 2,  -8, -2, 4, -7, -1}));
  EXPECT_EQ(AsDoubles(result.scale_OG),
            (std::vector<double>{0.033447265625, 0.058349609375, 0.050048828125, 0.050048828125,
                                 0.0625, 0.05419921875}));
  EXPECT_EQ(Packed(result.codes_OI, 3, 4),
            (std::vector<int32_t>{1646193233, 1660571898, 1908804191}));
  EXPECT_NEAR(result.solver_loss, 0.173727, 1e-6);
  EXPECT_NEAR(result.loss, 0.338863, 1e-6);
  EXPECT_NEAR(Loss(SmallProblem(), result.codes_OI, result.scale_OG, 4), 0.338863, 1e-6);
}

TEST(GptqReference, Int4WithStaticOrder) {
  const Problem problem = SmallProblem();
  const GptqOptions options = Reference(4, ActOrder::kStatic);
  ThreadPool pool(1);
  EXPECT_EQ(FactorHessian(pool, problem.hessian, options, "w").order_I,
            (std::vector<int32_t>{5, 7, 1, 4, 6, 2, 3, 0}));
  const GptqResult result = Quantize(problem, options);
  EXPECT_EQ(result.codes_OI, (Codes{-7, -3, 2,  7,  6, -7, -6, -2, 2,  7, -8, -3,
                                    3,  7,  -6, -2, 7, -3, 2,  -8, -2, 4, -7, -1}));
  EXPECT_EQ(Packed(result.codes_OI, 3, 4),
            (std::vector<int32_t>{1646197329, 1660637434, 1908804191}));
  EXPECT_NEAR(result.solver_loss, 0.109155, 1e-6);
  EXPECT_NEAR(result.loss, 0.209744, 1e-6);
}

TEST(GptqReference, IdentityHessianRoundsToNearestAndLosesMore) {
  const Problem problem = SmallProblem();
  const GptqOptions options = Reference(4, ActOrder::kNone);
  const Codes nearest = NearestCodes(problem, options);
  EXPECT_EQ(nearest, (Codes{-7, -3, 2,  7,  6, -7, -5, -2, 2,  7, -7, -2,
                            2,  7,  -7, -2, 7, -3, 2,  -8, -2, 4, -7, -1}));
  const std::vector<BFloat16> scale = Quantize(problem, options).scale_OG;
  EXPECT_NEAR(Loss(problem, nearest, scale, 4), 0.425019, 1e-6);
}

TEST(GptqReference, Int8WithoutOrder) {
  const GptqResult result = Quantize(SmallProblem(), Reference(8, ActOrder::kNone));
  EXPECT_EQ(AsDoubles(result.scale_OG),
            (std::vector<double>{0.0019683837890625, 0.0034332275390625, 0.0029449462890625,
                                 0.0029449462890625, 0.0036773681640625, 0.0031890869140625}));
  EXPECT_EQ(
      Packed(result.codes_OI, 3, 8),
      (std::vector<int32_t>{-274706431, 1546453485, 1442968992, 1611464618, 11161079, 1828767065}));
  EXPECT_NEAR(result.loss, 0.0018455, 1e-7);
}

TEST(GptqReference, Int8WithStaticOrder) {
  const Problem problem = SmallProblem();
  const GptqResult result = Quantize(problem, Reference(8, ActOrder::kStatic));
  EXPECT_EQ(
      Packed(result.codes_OI, 3, 8),
      (std::vector<int32_t>{-274706430, 1546453485, 1442968992, 1611464619, 28003831, 1811989849}));
  EXPECT_NEAR(result.loss, 0.0012751, 1e-7);
  const Codes nearest = NearestCodes(problem, Reference(8, ActOrder::kNone));
  EXPECT_NEAR(Loss(problem, nearest, result.scale_OG, 4), 0.0028751, 1e-7);
}

TEST(GptqReference, BlockSizeChangesNoCode) {
  for (const int num_bits : {4, 8}) {
    for (const ActOrder actorder : {ActOrder::kNone, ActOrder::kStatic}) {
      GptqOptions options = Reference(num_bits, actorder);
      const Codes expected = Quantize(SmallProblem(), options).codes_OI;
      for (const int64_t block_size : {1, 3, 4, 8, 128}) {
        options.block_size = block_size;
        EXPECT_EQ(Quantize(SmallProblem(), options).codes_OI, expected) << block_size;
      }
    }
  }
}

TEST(GptqReference, OrderOfAFallingDiagonalIsNoOrder) {
  Problem problem = SmallProblem();
  ThreadPool pool(1);
  const std::vector<int32_t> order =
      FactorHessian(pool, problem.hessian, Reference(4, ActOrder::kStatic), "w").order_I;
  Hessian sorted(8);
  for (int64_t i = 0; i < 8; ++i) {
    for (int64_t j = i; j < 8; ++j) {
      const int32_t a = order[static_cast<size_t>(i)], b = order[static_cast<size_t>(j)];
      sorted.At(i, j) = problem.hessian.At(std::min(a, b), std::max(a, b));
    }
  }
  problem.hessian = sorted;
  EXPECT_EQ(Quantize(problem, Reference(4, ActOrder::kStatic)).codes_OI,
            Quantize(problem, Reference(4, ActOrder::kNone)).codes_OI);
}

TEST(GptqReference, ScaleOfTheHessianChangesNoCode) {
  Problem problem = SmallProblem();
  const GptqResult before = Quantize(problem, Reference(4, ActOrder::kStatic));
  for (float& value : problem.hessian.upper_II) value *= 37.5f;
  const GptqResult after = Quantize(problem, Reference(4, ActOrder::kStatic));
  EXPECT_EQ(after.codes_OI, before.codes_OI);
  EXPECT_NEAR(after.solver_loss, 37.5 * before.solver_loss, 1e-5);
}

// Four tokens, four features, of which the third is always zero.
Problem DeadColumnProblem() {
  Problem problem{2, 4,
                  ToBFloat16s({0.875, -0.40625, 0.3125, 0.75, -0.1875, 0.5625, 1.125, -0.625}),
                  Hessian(4)};
  ThreadPool pool(1);
  const std::vector<BFloat16> inputs =
      ToBFloat16s({1, 2, 0, 0, 2, 1, 0, 1, 0, 1, 0, 2, 1, 0, 0, 1});
  AccumulateHessian(pool, inputs.data(), 4, problem.hessian);
  return problem;
}

TEST(GptqReference, DeadColumnsAreZeroed) {
  const Problem problem = DeadColumnProblem();
  const GptqOptions options = Reference(4, ActOrder::kStatic, 2);
  ThreadPool pool(1);
  const HessianFactor factor = FactorHessian(pool, problem.hessian, options, "w");
  EXPECT_EQ(factor.order_I, (std::vector<int32_t>{0, 1, 3, 2}));
  EXPECT_NEAR(static_cast<double>(factor.added_I[0]), 0.0925, 1e-6);
  for (const ActOrder actorder : {ActOrder::kNone, ActOrder::kStatic}) {
    const GptqResult result = Quantize(problem, Reference(4, actorder, 2));
    EXPECT_EQ(result.codes_OI, (Codes{7, -3, 0, 7, -2, 7, 0, -4}));
    EXPECT_EQ(AsDoubles(result.scale_OG),
              (std::vector<double>{0.11669921875, 0.10009765625, 0.0751953125, 0.150390625}));
  }
}

TEST(GptqReference, FeedbackIsTheInverseFactorsRatio) {
  ThreadPool pool(1);
  const HessianFactor factor =
      FactorHessian(pool, DeadColumnProblem().hessian, Reference(4, ActOrder::kNone, 2), "w");
  // Column by column, errors spread by U_0j / U_00 of the inverse's factor U. In the first step
  // only column 0 has an error, so that its spread to column j through later, unrounded columns is
  // -U_0j / U_00.
  const double u[4] = {0.396912, -0.218713, 0.0, -0.088418};
  EXPECT_NEAR(1.0 / std::sqrt(static_cast<double>(factor.pivot_I[0])), u[0], 1e-6);
  std::vector<double> delta = {1.0, 0.0, 0.0, 0.0};  // errors when columns 1 to 3 are left exact
  for (size_t j = 1; j < 4; ++j) {
    double target = 0.0;
    for (size_t i = 0; i < j; ++i) {
      target += delta[i] * static_cast<double>(factor.feedback_II[j * 4 + i]);
    }
    delta[j] = -target;
    EXPECT_NEAR(-target, u[j] / u[0], 2e-6) << j;
  }
}

TEST(GptqReference, ZeroHessianZeroesTheWeight) {
  Problem problem = SmallProblem();
  problem.hessian = Hessian(8);
  EXPECT_EQ(Quantize(problem, Reference(4, ActOrder::kStatic)).codes_OI, Codes(24, 0));
}

GptqOptions SmallGroups(int64_t group_size) {
  GptqOptions options;
  options.group_size = group_size;
  return options;
}

TEST(Gptq, DeadColumnsKeepTheirNearestCodes) {
  GptqOptions options = SmallGroups(2);
  options.scale_rule = ScaleRule::kAbsmax7_5;
  EXPECT_EQ(Quantize(DeadColumnProblem(), options).codes_OI, (Codes{7, -3, 3, 7, -2, 7, 7, -4}));
}

TEST(Gptq, LossOfDeadAndLiveColumnsIsThatOfTheCodes) {
  const Problem problem = DeadColumnProblem();
  const GptqResult result = Quantize(problem, SmallGroups(2));
  EXPECT_NEAR(result.loss, Loss(problem, result.codes_OI, result.scale_OG, 2), 1e-5 * result.loss);
}

TEST(Gptq, ColdModuleIsRoundedToNearestAndSaysSo) {
  Problem problem = SmallProblem();
  problem.hessian = Hessian(8);
  const GptqResult result = Quantize(problem, SmallGroups(4));
  EXPECT_TRUE(result.is_round_to_nearest);
  EXPECT_EQ(result.fallback_reason, "no calibration token reached it");
  const QuantizeSpec spec{ScaleRule::kAbsmax7, GridOf(ScaleRule::kAbsmax7, 4), 4};
  std::vector<int32_t> packed(3);
  std::vector<BFloat16> scale(6);
  ThreadPool pool(1);
  QuantizeMatrix(pool, problem.weight.data(), 3, 8, spec, packed.data(), scale.data());
  EXPECT_EQ(Packed(result.codes_OI, 3, 4), packed);
  EXPECT_EQ(AsDoubles(result.scale_OG), AsDoubles(scale));
}

// Rows and columns at random; `tokens` random inputs with features of different size.
Problem RandomProblem(int64_t rows, int64_t columns, int64_t tokens) {
  std::vector<double> weight, inputs;
  for (uint64_t i = 0; i < static_cast<uint64_t>(rows * columns); ++i) {
    weight.push_back(UniformDouble(1, 0, i) + UniformDouble(1, 1, i) - 1.0);
  }
  for (uint64_t t = 0; t < static_cast<uint64_t>(tokens); ++t) {
    const double common = UniformDouble(2, 0, t) - 0.5;
    for (uint64_t i = 0; i < static_cast<uint64_t>(columns); ++i) {
      const double own = UniformDouble(3, t, i) - 0.5;
      inputs.push_back((own + common) * std::exp2(static_cast<double>(i % 5)));
    }
  }
  Problem problem{rows, columns, ToBFloat16s(weight), Hessian(columns)};
  ThreadPool pool(2);
  AccumulateHessian(pool, ToBFloat16s(inputs).data(), tokens, problem.hessian);
  return problem;
}

TEST(Gptq, ANarrowGridBoundsTheCodes) {
  const Problem problem = RandomProblem(48, 192, 600);
  for (const ScaleRule rule : {ScaleRule::kSearched, ScaleRule::kAbsmax7}) {
    GptqOptions options = SmallGroups(64);
    options.scale_rule = rule;
    options.grid = CodeGrid{4, -3, 3};
    const GptqResult result = Quantize(problem, options);
    const auto [lo, hi] = std::minmax_element(result.codes_OI.begin(), result.codes_OI.end());
    EXPECT_EQ(*lo, -3);
    EXPECT_EQ(*hi, 3);
    const Codes nearest = NearestCodes(problem, options);
    EXPECT_LE(*std::max_element(nearest.begin(), nearest.end()), 3);
    EXPECT_LT(result.loss, Loss(problem, nearest, result.scale_OG, 64));
  }
  GptqOptions narrow = SmallGroups(4);
  narrow.grid = CodeGrid{4, -3, 3};
  Problem cold = SmallProblem();
  cold.hessian = Hessian(8);
  for (const int8_t code : Quantize(cold, narrow).codes_OI) EXPECT_LE(std::abs(code), 3);
}

TEST(Gptq, DefaultBeatsTheReferenceWhichBeatsRoundToNearest) {
  const Problem problem = RandomProblem(48, 192, 600);
  for (const int num_bits : {4, 8}) {
    GptqOptions options = SmallGroups(64);
    options.num_bits = num_bits;
    const double ours = Quantize(problem, options).loss;
    const GptqResult reference = Quantize(problem, ReferenceGptqOptions(num_bits, 64));
    const Codes nearest = NearestCodes(problem, ReferenceGptqOptions(num_bits, 64));
    EXPECT_LT(ours, reference.loss);
    EXPECT_LT(reference.loss, Loss(problem, nearest, reference.scale_OG, 64));
  }
}

TEST(Gptq, ThreadCountChangesNoBit) {
  const Problem problem = RandomProblem(70, 300, 400);
  const GptqResult one = Quantize(problem, SmallGroups(50), 1);
  for (const int num_threads : {2, 3}) {
    const GptqResult other = Quantize(problem, SmallGroups(50), num_threads);
    EXPECT_EQ(other.codes_OI, one.codes_OI);
    EXPECT_EQ(AsDoubles(other.scale_OG), AsDoubles(one.scale_OG));
    EXPECT_EQ(other.row_loss_O, one.row_loss_O);
  }
}

TEST(Gptq, RowsDoNotDependOnTheRowsBesideThem) {
  const Problem problem = RandomProblem(70, 96, 300);
  const GptqResult all = Quantize(problem, SmallGroups(32));
  Problem last = problem;
  last.rows = 3;
  last.weight.assign(problem.weight.end() - 3 * 96, problem.weight.end());
  const GptqResult few = Quantize(last, SmallGroups(32));
  EXPECT_EQ(few.codes_OI, Codes(all.codes_OI.end() - 3 * 96, all.codes_OI.end()));
}

TEST(Gptq, FewerTokensThanFeaturesNeedNoFallback) {
  const Problem problem = RandomProblem(4, 128, 20);
  const GptqResult result = Quantize(problem, SmallGroups(32));
  EXPECT_FALSE(result.is_round_to_nearest);
  ThreadPool pool(1);
  EXPECT_EQ(FactorHessian(pool, problem.hessian, SmallGroups(32), "w").rung, 0);
}

TEST(Gptq, RankOneHessianWithoutDampeningClimbsOneRung) {
  const Problem problem = RandomProblem(4, 64, 1);
  GptqOptions options = SmallGroups(32);
  options.dampening_frac = 0.0;
  ThreadPool pool(1);
  const HessianFactor factor = FactorHessian(pool, problem.hessian, options, "w");
  EXPECT_TRUE(factor.is_usable());
  EXPECT_EQ(factor.rung, 1);
  EXPECT_EQ(factor.dampening_frac, 0.01);
  options.fallback = Fallback::kRoundToNearest;
  EXPECT_FALSE(FactorHessian(pool, problem.hessian, options, "w").is_usable());
}

TEST(Gptq, IndefiniteHessianEndsInRoundToNearest) {
  Problem problem = SmallProblem();
  problem.hessian.At(0, 1) = 1e6f;
  const GptqResult result = Quantize(problem, SmallGroups(4));
  EXPECT_TRUE(result.is_round_to_nearest);
  EXPECT_NE(result.fallback_reason.find("not positive definite"), std::string::npos);
}

TEST(Gptq, ATargetIsQuantisedInPlaceOfTheWeight) {
  Problem problem = SmallProblem();
  const GptqResult expected = Quantize(problem, {.group_size = 4});
  std::vector<float> target;
  for (BFloat16& value : problem.weight) {
    target.push_back(ToFloat(value));
    value = ToBFloat16(1.0f);
  }
  ThreadPool pool(1);
  WeightMatrix weight = problem.Weight();
  weight.target = target.data();
  const HessianFactor factor = FactorHessian(pool, problem.hessian, {.group_size = 4}, "w");
  const GptqResult result =
      QuantizeWeight(pool, weight, problem.hessian, factor, {.group_size = 4}, "w");
  EXPECT_EQ(result.codes_OI, expected.codes_OI);
  for (size_t at = 0; at < expected.scale_OG.size(); ++at) {
    EXPECT_EQ(result.scale_OG[at].bits, expected.scale_OG[at].bits);
  }
  EXPECT_EQ(result.loss, expected.loss);
}

TEST(Gptq, OneFactorServesEveryWeightOfAnInput) {
  const Problem problem = RandomProblem(40, 64, 200);
  ThreadPool pool(2);
  const GptqOptions options = SmallGroups(32);
  const HessianFactor shared = FactorHessian(pool, problem.hessian, options, "gate");
  for (const int64_t first : {0, 20}) {
    const WeightMatrix weight{problem.weight.data() + first * 64, 20, 64};
    Problem own{20, 64, {weight.data, weight.data + 20 * 64}, problem.hessian};
    EXPECT_EQ(QuantizeWeight(pool, weight, problem.hessian, shared, options, "w").codes_OI,
              Quantize(own, options).codes_OI);
  }
}

std::string MessageOf(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Gptq, NaNInTheHessianNamesTheModule) {
  Problem problem = SmallProblem();
  problem.hessian.At(2, 5) = std::numeric_limits<float>::quiet_NaN();
  ThreadPool pool(2);
  const std::string message =
      MessageOf([&] { FactorHessian(pool, problem.hessian, {}, "model.layers.3.mlp.down_proj"); });
  EXPECT_NE(message.find("model.layers.3.mlp.down_proj"), std::string::npos) << message;
  EXPECT_NE(message.find("2, 5"), std::string::npos) << message;
}

TEST(Gptq, WeightWithoutACodeNamesRowAndColumn) {
  Problem problem = SmallProblem();
  problem.weight[13] = ToBFloat16(std::numeric_limits<float>::infinity());
  const std::string message = MessageOf([&] { Quantize(problem, SmallGroups(4)); });
  EXPECT_NE(message.find("row 1, column 5"), std::string::npos) << message;
}

TEST(Gptq, GroupSizeThatDoesNotDivideIsRefused) {
  const std::string message = MessageOf([&] { Quantize(SmallProblem(), SmallGroups(3)); });
  EXPECT_NE(message.find("divisor of 8"), std::string::npos) << message;
}

}  // namespace
}  // namespace quatrain
