#include "quant/scheme.h"

#include <gtest/gtest.h>

#include <functional>

#include "base/error.h"

namespace quatrain {
namespace {

std::string MessageOf(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

bool Contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(QuantScheme, DefaultIsInt4GroupsOf32WithSymmetricCodes) {
  const QuantScheme scheme;
  EXPECT_EQ(scheme.Name(), "W4A16 g32");
  EXPECT_EQ(scheme.grid().lo, -7);
  EXPECT_EQ(scheme.grid().hi, 7);
  EXPECT_EQ(scheme.ignore, std::vector<std::string>{"lm_head"});
  CheckScheme(scheme, "test");
}

TEST(QuantScheme, ZeroGroupSizeIsOneScalePerChannel) {
  const QuantScheme scheme{.num_bits = 8, .group_size = 0};
  EXPECT_EQ(scheme.Name(), "W8A16 per channel");
  EXPECT_EQ(scheme.GroupSizeFor(2048), 2048);
  EXPECT_EQ(scheme.SpecFor(96).group_size, 96);
  EXPECT_EQ(scheme.grid().lo, -127);
}

TEST(QuantScheme, FrozenBoundsReplaceThoseOfTheRule) {
  const QuantScheme scheme{.scale_rule = ScaleRule::kFrozen, .frozen_grid = CodeGrid{4, -7, 7}};
  EXPECT_EQ(scheme.grid().lo, -7);
}

TEST(QuantScheme, ANarrowGridIsSymmetricAndFitsItsContainer) {
  const QuantScheme scheme{.group_size = 128, .frozen_grid = NarrowGrid(4, 3, "--code-max")};
  EXPECT_EQ(scheme.grid().lo, -3);
  EXPECT_EQ(scheme.grid().hi, 3);
  EXPECT_EQ(scheme.Name(), "W4A16 g128 codes -3..3");
  EXPECT_EQ(NarrowGrid(8, 127, "--code-max").lo, -127);
  EXPECT_TRUE(Contains(MessageOf([] { NarrowGrid(4, 8, "--code-max"); }),
                       "--code-max: 4 bits do not hold such codes; expected 1 to 7, found 8"));
  EXPECT_TRUE(Contains(MessageOf([] { NarrowGrid(4, 0, "--code-max"); }), "found 0"));
}

TEST(QuantScheme, RefusesBitsAndGroupSizesNoEngineHas) {
  EXPECT_TRUE(Contains(MessageOf([] { CheckScheme({.num_bits = 3}, "--quant-type"); }),
                       "--quant-type: unsupported number of bits; expected 4 or 8, found 3"));
  EXPECT_TRUE(Contains(MessageOf([] { CheckScheme({.group_size = 48}, "--quant-group-size"); }),
                       "expected 32, 64, 128, or 0"));
}

TEST(QuantScheme, RuleNamesComeBack) {
  for (ScaleRule rule :
       {ScaleRule::kAbsmax7, ScaleRule::kAbsmax7_5, ScaleRule::kSearched, ScaleRule::kFrozen}) {
    EXPECT_EQ(ParseScaleRule(ScaleRuleName(rule), "test"), rule);
  }
  EXPECT_TRUE(Contains(MessageOf([] { ParseScaleRule("absmax", "--scale-rule"); }),
                       "--scale-rule: unknown scale rule"));
}

TEST(CheckDivides, NamesTensorKAndGroupAndWhatWouldFit) {
  CheckDivides("x", 4096, 128);
  CheckDivides("x", 100, 0);
  const std::string message =
      MessageOf([] { CheckDivides("model.layers.0.mlp.down_proj", 29600, 128); });
  EXPECT_TRUE(Contains(message, "model.layers.0.mlp.down_proj")) << message;
  EXPECT_TRUE(Contains(message, "K = 29600")) << message;
  EXPECT_TRUE(Contains(message, "groups of 128")) << message;
  EXPECT_TRUE(Contains(message, "32, or 0 (per channel)")) << message;
  const std::string none = MessageOf([] { CheckDivides("w", 100, 32); });
  EXPECT_TRUE(Contains(none, "only 0 (per channel)")) << none;
}

TEST(GroupSizesThatFit, AreListedLargestFirst) {
  EXPECT_EQ(GroupSizesThatFit(768), (std::vector<int64_t>{128, 64, 32, 0}));
  EXPECT_EQ(GroupSizesThatFit(96), (std::vector<int64_t>{32, 0}));
  EXPECT_EQ(GroupSizesThatFit(7), (std::vector<int64_t>{0}));
}

}  // namespace
}  // namespace quatrain
