// Runs the kernels of csrc/cuda/warp.cuh on the host: jobs from a file, results into another. Every
// array is its own allocation without a byte to spare, for the address sanitizer.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

#include "warp.cuh"

namespace {

using namespace fastpose::cuda;

void require(bool fine, const char* what) {
  if (fine) return;
  std::fprintf(stderr, "warp_host: %s\n", what);
  std::exit(1);
}

// Names of numbers and of arrays, each as (length, bytes).
class Job {
 public:
  explicit Job(std::FILE* file) {
    for (auto left = take<int64_t>(file); left > 0; --left) {
      const std::string name = text(file);
      numbers_[name] = take<double>(file);
    }
    for (auto left = take<int64_t>(file); left > 0; --left) {
      const std::string name = text(file);
      Array& array = arrays_[name];
      array.size = take<int64_t>(file);
      array.data = static_cast<char*>(std::malloc(array.size));
      require(array.size == 0 || std::fread(array.data, array.size, 1, file) == 1,
              "file too short");
    }
  }
  Job(const Job&) = delete;
  ~Job() {
    for (auto& [name, array] : arrays_) std::free(array.data);
  }

  double number(const std::string& name) const {
    const auto found = numbers_.find(name);
    require(found != numbers_.end(), name.c_str());
    return found->second;
  }
  int whole(const std::string& name) const { return static_cast<int>(number(name)); }
  // Null if there is none of that name.
  template <class T>
  T* array(const std::string& name) const {
    const auto found = arrays_.find(name);
    return found == arrays_.end() ? nullptr : reinterpret_cast<T*>(found->second.data);
  }
  void write(const std::string& name, std::FILE* file) const {
    const Array& array = arrays_.at(name);
    std::fwrite(array.data, array.size, 1, file);
  }

 private:
  struct Array {
    char* data;
    int64_t size;
  };

  template <class T>
  static T take(std::FILE* file) {
    T value;
    require(std::fread(&value, sizeof value, 1, file) == 1, "file too short");
    return value;
  }
  static std::string text(std::FILE* file) {
    std::string name(take<int64_t>(file), ' ');
    require(std::fread(name.data(), name.size(), 1, file) == 1, "file too short");
    return name;
  }

  std::map<std::string, double> numbers_;
  std::map<std::string, Array> arrays_;
};

// Calls run with a value of the numbered type.
template <class Run>
void for_type(int type, const Run& run) {
  if (type == 0) {
    run(float());
  } else if (type == 1) {
    run(__half());
  } else {
    run(__nv_bfloat16());
  }
}

Windows windows_of(const Job& job) {
  Windows windows{};
  windows.affines = job.array<float>("affines");
  windows.source = job.array<int32_t>("source");
  windows.areas = job.array<int32_t>("areas");
  windows.sources = job.whole("sources");
  windows.count = job.whole("count");
  windows.height = job.whole("h");
  windows.width = job.whole("w");
  windows.area = job.whole("area");
  windows.border = static_cast<float>(job.number("border"));
  return windows;
}

template <class T>
Maps<T> maps_of(const Job& job, const std::string& name) {
  const auto number = [&](const char* of) { return static_cast<int64_t>(job.number(name + of)); };
  return {job.array<T>(name) + number(".offset"),
          number(".stride0"),
          number(".stride1"),
          number(".stride2"),
          number(".stride3"),
          job.whole("channels"),
          job.whole(name + ".h"),
          job.whole(name + ".w")};
}

template <class Format, class T>
void frames_job(const Job& job) {
  const Windows windows = windows_of(job);
  // the table names frames by number and offset: addresses are made here
  auto* table = job.array<int64_t>("table");
  for (int i = 0; table && i < windows.sources; ++i)
    table[4 * i] += reinterpret_cast<int64_t>(job.array<char>("frame" + std::to_string(i)));
  const Frames frames{table,
                      table ? nullptr : job.array<uint8_t>("frames") + job.whole("offset"),
                      job.whole("frame_stride"),
                      job.whole("row_stride"),
                      job.whole("H"),
                      job.whole("W")};
  const FrameOutput out = frame_output<Format, T>(
      job.array<void>("out"), windows, job.array<float>("scale"), job.array<float>("shift"),
      job.array<float>("matrix"), job.whole("channels_last"), job.whole("swap_rb"));
  const int rows = job.whole("rows") ? job.whole("rows") : rows_of_tile(windows);
  const auto launch = [&](const auto& kernel) {
    for_grids(frames_grid(windows, rows), windows.count, [&](dim3 grid, int64_t first) {
      run_grid(grid, dim3(kLanes, kWarps), kernel, frames, windows, out, rows, first);
    });
  };
  if constexpr (sizeof(T) == 2) {
    if (stores_pairs<T>(windows, out.data, job.whole("channels_last")))
      return launch(warp_frames<Format, T, true>);
  }
  launch(warp_frames<Format, T, false>);
}

template <class From, class To>
void maps_job(const Job& job) {
  const Windows windows = windows_of(job);
  const auto maps = maps_of<const From>(job, "maps");
  const MapOutput out{job.array<void>("out"), job.array<float>("scale"), job.array<float>("shift"),
                      job.whole("channels_last") != 0, job.whole("swap_rb") != 0};
  const bool vector = !out.swap_rb && reads_vectors(maps);
  require(vector == (job.whole("vector") != 0), "another kernel than expected");
  const auto kernel = vector ? warp_maps<From, To, true> : warp_maps<From, To, false>;
  const int group = vector ? kGroupOf<From, true> : kStridedGroup;
  for_grids(maps_grid(windows, maps.channels, group), windows.count, [&](dim3 grid, int64_t first) {
    run_grid(grid, dim3(kMapThreads), kernel, maps, windows, out, first);
  });
}

template <class From>
void scatter_job(const Job& job) {
  const Windows windows = windows_of(job);
  const auto grad = maps_of<const From>(job, "grad");
  const auto total = maps_of<float>(job, "out");
  const dim3 grid = maps_grid(windows, total.channels, kStridedGroup);
  for_grids(grid, windows.count, [&](dim3 part, int64_t first) {
    run_grid(part, dim3(kMapThreads), scatter_maps<From>, grad, windows, total,
             job.array<const float>("scale"), job.whole("swap_rb") != 0, first);
  });
}

void run(const Job& job) {
  const int kind = job.whole("kind"), type = job.whole("type");
  if (kind < 2) {
    for_type(type, [&](auto real) {
      using T = decltype(real);
      kind == 0 ? frames_job<Interleaved, T>(job) : frames_job<Nv12, T>(job);
    });
  } else if (kind == 2) {
    for_type(job.whole("maps.type"), [&](auto from) {
      for_type(type, [&](auto to) { maps_job<decltype(from), decltype(to)>(job); });
    });
  } else {
    for_type(type, [&](auto from) { scatter_job<decltype(from)>(job); });
  }
}

}  // namespace

int main(int count, char** names) {
  require(count == 3, "usage: warp_host JOBS RESULTS");
  std::FILE* jobs = std::fopen(names[1], "rb");
  std::FILE* results = std::fopen(names[2], "wb");
  require(jobs && results, "cannot open the files");
  for (int next = std::fgetc(jobs); next != EOF; next = std::fgetc(jobs)) {
    const Job job(jobs);
    run(job);
    job.write("out", results);
  }
  require(std::fclose(results) == 0, "cannot write the results");
  std::fclose(jobs);
}
