// Rewards that judge text: DAPO's answer line, token F1, multiple choice. Pure functions.
#pragma once

#include "rl/reward.h"

namespace quatrain {

// DAPO (arXiv:2503.14476): what follows the last "Answer:" (any case, spaces around the colon, to
// the end of the line) in the last 300 characters, normalised by the rules of Minerva
// (arXiv:2206.14858, appendix D.1), equals the label as a whole number, or else the normalised
// label. Reward 1 if so; else 0, and the caller says what that is worth.
RewardResult ScoreDapo(const std::string& response, const std::string& label);

// The spelling that ScoreDapo compares: what stands behind the last "=", without units, text
// commands, spaces, dollar signs and the commas of a whole number.
std::string NormalizeDapoAnswer(std::string answer);

// F1 of the response's and the label's words, as bags: lower case (ASCII), without punctuation and
// the articles a, an, the. 0 if one of them is yes, no or noanswer and the other is not. Source:
// SQuAD's evaluation (arXiv:1606.05250), HotpotQA's rule for yes and no.
RewardResult ScoreF1(const RewardInput& input);

// 1 if the letter chosen behind the last </think> is the right one: the letter behind "answer",
// "option" or "choice" (perhaps "is" or a colon), or before "is correct", or else the last capital
// that stands alone. Without a letter, 1 if the right choice's text occurs. Metadata may hold
// "choices" (a list), "correct_letter" and "valid_letters"; a label is a letter, the number of a
// choice from 0, or a choice's text. Source: THUDM/slime:slime/rollout/rm_hub/gpqa.py, with one
// rule mended: a letter must stand alone, "answer is a" is no choice of A.
RewardResult ScoreGpqa(const RewardInput& input);

}  // namespace quatrain
