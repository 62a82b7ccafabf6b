// Greedy suppression. The definitions are the references in fastpose/ops/suppress.py.
#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "fastpose.h"

namespace fastpose {
namespace {

constexpr double kAreaEpsilon = std::numeric_limits<double>::epsilon();

// Overlap(i, j) is asked only for candidates; `scores` are NaN where there is none.
template <class Overlap>
Kept suppress(std::vector<double> scores, const Suppression& rule, Overlap overlap) {
  std::vector<int64_t> left;
  for (size_t i = 0; i < scores.size(); ++i)
    if (std::isfinite(scores[i]) && scores[i] >= rule.floor) left.push_back(int64_t(i));

  Kept kept;
  while (!left.empty()) {
    // The first of equal scores, since `left` stays in order.
    const auto place = std::max_element(
        left.begin(), left.end(), [&](int64_t a, int64_t b) { return scores[a] < scores[b]; });
    const int64_t best = *place;
    left.erase(place);
    kept.indices.push_back(best);
    kept.scores.push_back(static_cast<float>(scores[best]));

    const auto is_out = [&](int64_t i) {
      const double o = overlap(best, i);
      if (rule.method == SuppressMethod::Hard) return o > rule.threshold;
      if (rule.method == SuppressMethod::SoftGaussian)
        scores[i] *= std::exp(-o * o / rule.sigma);
      else if (o > rule.threshold)
        scores[i] *= 1.0 - o;
      return scores[i] < rule.floor;
    };
    left.erase(std::remove_if(left.begin(), left.end(), is_out), left.end());
  }
  return kept;
}

bool all_finite(const double* values, int count) {
  return std::all_of(values, values + count, [](double v) { return std::isfinite(v); });
}

double side(double low, double high) { return std::max(high - low, 0.0); }

double box_area(const double* box) { return side(box[0], box[2]) * side(box[1], box[3]); }

double iou(const double* a, const double* b) {
  const double shared = side(std::max(a[0], b[0]), std::min(a[2], b[2])) *
                        side(std::max(a[1], b[1]), std::min(a[3], b[3]));
  const double all = box_area(a) + box_area(b) - shared;
  return all > 0.0 ? shared / all : 0.0;
}

}  // namespace

SuppressMethod parse_suppress_method(const std::string& name) {
  if (name == "hard") return SuppressMethod::Hard;
  if (name == "soft-linear") return SuppressMethod::SoftLinear;
  if (name == "soft-gaussian") return SuppressMethod::SoftGaussian;
  throw std::invalid_argument("unknown suppression method " + name);
}

Kept suppress_boxes(const double* boxes, const double* scores, const int64_t* classes, int64_t n,
                    const Suppression& rule) {
  std::vector<double> usable(scores, scores + n);
  for (int64_t i = 0; i < n; ++i)
    if (!all_finite(boxes + 4 * i, 4)) usable[i] = std::nan("");
  return suppress(std::move(usable), rule, [&](int64_t a, int64_t b) {
    return classes[a] == classes[b] ? iou(boxes + 4 * a, boxes + 4 * b) : 0.0;
  });
}

Kept suppress_poses(const double* keypoints, const double* scores, const double* areas,
                    const double* sigmas, int64_t n, int64_t joints, const Suppression& rule) {
  std::vector<double> usable(scores, scores + n), doubled(joints);
  for (int64_t i = 0; i < n; ++i)
    if (!std::isfinite(areas[i])) usable[i] = std::nan("");
  for (int64_t k = 0; k < joints; ++k) doubled[k] = 2.0 * (2.0 * sigmas[k]) * (2.0 * sigmas[k]);

  return suppress(std::move(usable), rule, [&](int64_t a, int64_t b) {
    const double* p = keypoints + 2 * joints * a;
    const double* q = keypoints + 2 * joints * b;
    const double area = (std::max(areas[a], 0.0) + std::max(areas[b], 0.0)) / 2.0 + kAreaEpsilon;
    double sum = 0.0;
    int64_t common = 0;
    for (int64_t k = 0; k < joints; ++k, p += 2, q += 2) {
      if (!all_finite(p, 2) || !all_finite(q, 2)) continue;
      const double dx = p[0] - q[0], dy = p[1] - q[1];
      sum += std::exp(-(dx * dx + dy * dy) / (area * doubled[k]));
      ++common;
    }
    return common ? sum / static_cast<double>(common) : 0.0;
  });
}

}  // namespace fastpose
