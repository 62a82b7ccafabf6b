// Trees of parts to poses. The definition is fit_tree_reference in fastpose/ops/fit_tree.py.
#include <algorithm>
#include <cmath>
#include <vector>

#include "fastpose.h"
#include "pool.h"

namespace fastpose {
namespace {

constexpr double kLowest = -1e6;  // of a score that is not finite

// max over v of f[v] - weight (q - v)^2 for q = first, first + 1, ..., one q for each v, by the
// upper envelope of the parabolas (Felzenszwalb and Huttenlocher 2012).
class Transform {
 public:
  Transform(double weight, int longest)
      : weight_(weight), half_(longest), apex_(longest), from_(longest) {
    for (int d = 1; d < longest; ++d) half_[d] = 0.5 / (weight * d);
  }

  // Calls emit(i, value, v) for i = 0, 1, ..., count - 1; of equal values with the lowest v.
  template <class Emit>
  void operator()(const double* f, int count, double first, const Emit& emit) {
    const int last = envelope(f, count);
    for (int i = 0, k = 0; i < count; ++i) {
      const double q = first + i;
      double value = parabola(f, k, q);
      // The values themselves are compared, not `from_`, so that ties are those of the definition.
      for (double next; k < last && (next = parabola(f, k + 1, q)) > value; ++k) value = next;
      emit(i, value, apex_[k]);
    }
  }

 private:
  double parabola(const double* f, int k, double q) const {
    const double away = q - apex_[k];
    return f[apex_[k]] - weight_ * (away * away);
  }

  // Leaves the apexes of the parabolas that are highest somewhere; returns the index of the last.
  int envelope(const double* f, int count) {
    int k = 0;
    apex_[0] = 0;
    from_[0] = -HUGE_VAL;
    for (int v = 1; v < count; ++v) {
      double start = crossing(f, apex_[k], v);
      while (k > 0 && start <= from_[k]) start = crossing(f, apex_[--k], v);
      apex_[++k] = v;
      from_[k] = start;
    }
    return k;
  }

  // Where the parabola of v > u begins to be higher than that of u; with a weight next to 0 this
  // may be at an infinity.
  double crossing(const double* f, int u, int v) const {
    return (f[u] - f[v]) * half_[v - u] + 0.5 * (u + v);
  }

  double weight_;
  std::vector<double> half_;  // 1 / (2 weight d)
  std::vector<int> apex_;
  std::vector<double> from_;  // where each parabola of the envelope begins to be the highest
};

// One body at a time; what it needs is kept for the next.
class Fitter {
 public:
  explicit Fitter(const TreeJob& job)
      : job_(job),
        cells_(size_t(job.h) * job.w),
        transform_(job.weight, std::max(job.h, job.w)),
        sums_(job.parts * cells_),
        map_(cells_),
        across_(cells_),
        best_(cells_),
        column_(cells_),
        place_(job.parts * cells_),
        type_(job.parts * cells_) {}

  void fit(int64_t body) {
    std::fill(sums_.begin(), sums_.end(), 0.0);
    const int64_t root = job_.order[0];
    for (int i = job_.parts - 1; i > 0; --i) send(body, job_.order[i]);
    place_root(body, root);
    float* points = job_.points + body * job_.parts * 2;
    int64_t* types = job_.out_types + body * job_.parts;
    for (int i = 0; i < job_.parts; ++i) {
      const int64_t part = job_.order[i];
      size_t here = part * cells_;  // of the root, all is kept at the first cell
      if (part != root) {
        const float* parent = points + 2 * job_.parents[part];
        here += size_t(parent[1]) * job_.w + size_t(parent[0]);
      }
      points[2 * part] = static_cast<float>(place_[here] % job_.w);
      points[2 * part + 1] = static_cast<float>(place_[here] / job_.w);
      types[part] = type_[here];
    }
  }

 private:
  // Scores of a part as one type, with what its children add, into map_.
  void gather(int64_t body, int64_t part, int type) {
    const float* scores = job_.scores + ((body * job_.parts + part) * job_.types + type) * cells_;
    const double* sums = sums_.data() + part * cells_;
    for (size_t c = 0; c < cells_; ++c)
      map_[c] = (std::isfinite(scores[c]) ? double{scores[c]} : kLowest) + sums[c];
  }

  // Adds what a part gives at best to its parent, and keeps where and as what it gives it.
  void send(int64_t body, int64_t part) {
    const int h = job_.h, w = job_.w;
    int32_t* place = place_.data() + part * cells_;
    int32_t* types = type_.data() + part * cells_;
    std::fill(best_.begin(), best_.end(), -HUGE_VAL);
    for (int type = 0; type < job_.types; ++type) {
      gather(body, part, type);
      const int64_t* anchor = job_.anchors + 2 * (part * job_.types + type);
      const double right = double(anchor[0]), down = double(anchor[1]);
      for (int y = 0; y < h; ++y)  // turned over, so that columns are read in a row
        transform_(map_.data() + size_t(y) * w, w, right, [&](int x, double value, int v) {
          across_[size_t(x) * h + y] = value;
          column_[size_t(x) * h + y] = v;
        });
      for (int x = 0; x < w; ++x) {
        const int32_t* column = column_.data() + size_t(x) * h;
        transform_(across_.data() + size_t(x) * h, h, down, [&](int y, double value, int v) {
          const size_t cell = size_t(y) * w + x;
          if (!(value > best_[cell])) return;
          best_[cell] = value;
          place[cell] = v * w + column[v];
          types[cell] = type;
        });
      }
    }
    double* sums = sums_.data() + job_.parents[part] * cells_;
    for (size_t c = 0; c < cells_; ++c) sums[c] += best_[c];
  }

  void place_root(int64_t body, int64_t root) {
    double total = -HUGE_VAL;
    for (int type = 0; type < job_.types; ++type) {
      gather(body, root, type);
      const auto top = std::max_element(map_.begin(), map_.end());
      if (!(*top > total)) continue;
      total = *top;
      place_[root * cells_] = static_cast<int32_t>(top - map_.begin());
      type_[root * cells_] = type;
    }
    job_.total[body] = total;
  }

  const TreeJob& job_;
  const size_t cells_;
  Transform transform_;
  std::vector<double> sums_;                 // [parts, cells] of what children add
  std::vector<double> map_, across_, best_;  // [cells]
  std::vector<int32_t> column_;              // [cells] of across_
  std::vector<int32_t> place_, type_;        // [parts, cells] by the parent's cell
};

// Reckoned at 20 nanoseconds a cell.
int64_t bodies_per_quarter_millisecond(const TreeJob& job) {
  const int64_t cells = int64_t{job.h} * job.w * job.parts * job.types;
  return std::max<int64_t>(1, 12500 / cells);
}

}  // namespace

void fit_tree(const TreeJob& job) {
  parallel_for(job.n, bodies_per_quarter_millisecond(job), [&](int64_t begin, int64_t end) {
    Fitter fitter(job);
    for (int64_t body = begin; body < end; ++body) fitter.fit(body);
  });
}

}  // namespace fastpose
