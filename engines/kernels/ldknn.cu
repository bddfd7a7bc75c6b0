// LDKNN on an NVIDIA GPU: five kernels, run one after another on one stream. engines/ldknn_cuda.py lays out the memory and the
// grid (class Plan), prepares the bank, and states the bound that makes this exact; the names here are the names there.
//
//   prepare   centres, scales and rounds each query to half precision, and measures what that rounding cost
//   nearest   half-precision products on tensor cores; for each query and list of rows, the four least lower bounds
//   recheck   float32 differences for rows whose bound allows them to be nearest; names queries whose lists may lack one
//   brute     float32 differences with every row, for the queries that were named
//   pool      density, patch scores, windows, image score
//
// A lower bound of |q - b|^2, in units of the bank's spread, is
//   norm_b + norm_q - 2 <q, b> - 2 |q| error_b - 2 (error_q + gamma |q half|) length_b
// with error the length of what rounding to half took, and gamma for the tensor cores' accumulation.

#include <cuda_fp16.h>
#include <cuda_pipeline_primitives.h>
#include <mma.h>

using namespace nvcuda;

constexpr int kQueries = 128, kRows = 128;  // of a tile
constexpr int kDepth = 32;                  // dimensions in shared memory at a time
constexpr int kPitch = kDepth + 8;          // of a line there: 8 lines of 16 bytes meet all 32 banks
constexpr int kThreads = 256, kWarp = 32, kWarps = kThreads / kWarp;
constexpr int kLists = 2;                         // of a split: warps side by side over a tile's rows
constexpr int kWarpQueries = kWarp;               // one a lane, which keeps its list
constexpr int kWarpRows = kRows / kLists;         // 64
constexpr int kTile = 16;                         // of the tensor cores
constexpr int kStagePitch = kTile + 4;            // floats; 16-byte reads of 8 lanes meet all 32 banks
constexpr int kGroup = 8, kBruteRows = 4;         // queries and rows that a warp compares by differences at a time
constexpr float kHalfBank = 1.f / 16384;          // a bank of spread 1 is kept times 2^14 in half precision
constexpr int kHalfQuery = 13;                    // queries are scaled to a largest element from 2^13 to 2^14
constexpr float kFar = 1e30f;                     // squared length beyond which a query is left to `brute`
constexpr float kRoomy = 1.001f;                  // for the rounding of the bounds themselves
constexpr unsigned long long kNone = ~0ull;       // larger than any squared distance and row

static_assert(kWarps * kWarpQueries * kWarpRows == kQueries * kRows, "the warps cover a tile");
static_assert(kWarps * kWarpQueries * kStagePitch * sizeof(float) <= (kQueries + kRows) * kPitch * sizeof(half),
              "the products of a tile fit where its operands were");

struct Search {
  const float* queries;        // (query_count, dim)
  const float* rows;           // (row_count, dim)
  const half* row_halves;      // (row_tiles * kRows, depth)
  const float* row_terms;      // (row_tiles, 3, kRows): norm, error, length; a row that is only padding has an infinite norm
  const float* centre;         // (dim)
  const float* density;        // (row_count)
  const int* windows;          // (window_count, window_size): patches, or -1
  const unsigned char* judged; // (patches)
  half* query_halves;          // (padded queries, depth)
  float4* query_terms;         // (padded queries): factors of product, error and length; norm
  float4* bounds;              // (padded queries, lists): ascending, without the query's norm
  int4* bound_rows;            // (padded queries, lists): or -1
  unsigned long long* best;    // (padded queries): bits of the squared distance, then the row; kNone for no number
  int* open;                   // how many queries `brute` must answer, and which
  float* map;                  // (images, patches)
  float* scores;               // (images)
  int query_count, row_count, dim, depth, row_tiles, split_tiles, lists;
  int patches, window_count, window_size, euclidean;
  float scale;      // a power of two: what makes the bank's spread 1
  float rounding;   // relative error of a float32 sum here
  float gamma;      // relative error of a product in the tensor cores
  float alpha;
};

__device__ float warp_sum(float value) {
  for (int other = kWarp / 2; other > 0; other /= 2) value += __shfl_xor_sync(~0u, value, other);
  return value;
}

__device__ float warp_max(float value) {
  for (int other = kWarp / 2; other > 0; other /= 2) value = fmaxf(value, __shfl_xor_sync(~0u, value, other));
  return value;
}

// A warp's squared distance by differences.
__device__ float squared_difference(const float* one, const float* other, int dim, int lane) {
  float sum = 0;
  for (int i = lane; i < dim; i += kWarp) {
    const float difference = one[i] - other[i];
    sum = fmaf(difference, difference, sum);
  }
  return warp_sum(sum);
}

// Squared distances are not negative, so their bits order as they do, and equal ones by row.
__device__ unsigned long long ordered(float squared, int row) {
  return static_cast<unsigned long long>(__float_as_uint(squared)) << 32 | static_cast<unsigned>(row);
}

// One warp a query, padding included.
extern "C" __global__ void __launch_bounds__(kThreads) prepare(const Search s) {
  const int query = blockIdx.x * kWarps + threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (blockIdx.x == 0 && threadIdx.x == 0) *s.open = 0;
  const float* from = s.queries + static_cast<size_t>(query) * s.dim;
  half* to = s.query_halves + static_cast<size_t>(query) * s.depth;
  float largest = 0, norm = 0;
  bool finite = query < s.query_count;
  for (int i = lane; i < s.dim && query < s.query_count; i += kWarp) {
    const float value = (from[i] - s.centre[i]) * s.scale;
    finite = finite && isfinite(from[i]);
    largest = fmaxf(largest, fabsf(value));
    norm = fmaf(value, value, norm);
  }
  finite = __all_sync(~0u, finite);
  largest = warp_max(largest);
  norm = warp_sum(norm);
  const bool near = finite && norm < kFar;
  const int exponent = ilogbf(fmaxf(largest, 1e-12f));
  const float up = ldexpf(1, kHalfQuery - exponent), down = ldexpf(1, exponent - kHalfQuery);
  float error = 0;
  for (int i = lane; i < s.depth; i += kWarp) {
    const float value = near && i < s.dim ? (from[i] - s.centre[i]) * s.scale : 0;
    to[i] = __float2half_rn(near ? value * up : 0.f);
    const float lost = value - (near ? __half2float(to[i]) * down : 0.f);
    error = fmaf(lost, lost, error);
  }
  error = sqrtf(warp_sum(error));
  if (lane > 0) return;
  const float length = sqrtf(norm);
  s.best[query] = kNone;
  s.query_terms[query] =
      near ? make_float4(-2 * kHalfBank * down, -2 * kRoomy * length,
                         -2 * kRoomy * (error + s.gamma * (length + error)), norm * (1 - s.rounding))
           : make_float4(0, 0, 0, finite ? -INFINITY : NAN);
}

struct __align__(32) Operands {
  half lines[kQueries + kRows][kPitch];
  float row_terms[3][kRows];
};

// Starts copying kDepth dimensions of a tile of queries and a tile of rows; with the last of them, the rows' terms.
__device__ void fetch(Operands& to, const Search& s, int query_tile, int row_tile, int chunk, bool last) {
  constexpr int kParts = kDepth / 8;
  for (int piece = threadIdx.x; piece < (kQueries + kRows) * kParts; piece += kThreads) {
    const int line = piece / kParts, part = piece % kParts * 8;
    const half* from = line < kQueries ? s.query_halves + static_cast<size_t>(query_tile * kQueries + line) * s.depth
                                       : s.row_halves + static_cast<size_t>(row_tile * kRows + line - kQueries) * s.depth;
    __pipeline_memcpy_async(&to.lines[line][part], from + chunk * kDepth + part, 16);
  }
  if (last && threadIdx.x < 3 * kRows / 4)
    __pipeline_memcpy_async(&to.row_terms[0][0] + threadIdx.x * 4, s.row_terms + row_tile * 3 * kRows + threadIdx.x * 4, 16);
  __pipeline_commit();
}

// Keeps the four least, ascending; of equal ones the first.
__device__ void keep(float4& bounds, int4& rows, float bound, int row) {
  if (!(bound < bounds.w)) return;
  const bool x = bound < bounds.x, y = bound < bounds.y, z = bound < bounds.z;
  bounds.w = z ? bounds.z : bound, rows.w = z ? rows.z : row;
  bounds.z = y ? bounds.y : z ? bound : bounds.z, rows.z = y ? rows.y : z ? row : rows.z;
  bounds.y = x ? bounds.x : y ? bound : bounds.y, rows.y = x ? rows.x : y ? row : rows.y;
  bounds.x = x ? bound : bounds.x, rows.x = x ? row : rows.x;
}

// Grid: splits of the rows, tiles of queries. Each warp: 32 queries with one half of each tile of rows.
extern "C" __global__ void __launch_bounds__(kThreads, 2) nearest(const Search s) {
  __shared__ Operands operands[2];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int first_query = warp / kLists * kWarpQueries, first_row = warp % kLists * kWarpRows;
  const size_t query = blockIdx.y * kQueries + first_query + lane;
  const int first_tile = blockIdx.x * s.split_tiles, chunks = s.depth / kDepth;
  const int steps = min(s.split_tiles, s.row_tiles - first_tile) * chunks;
  const float4 terms = s.query_terms[query];
  float4 bounds = make_float4(INFINITY, INFINITY, INFINITY, INFINITY);
  int4 rows = make_int4(-1, -1, -1, -1);
  wmma::fragment<wmma::accumulator, kTile, kTile, kTile, float> products[kWarpQueries / kTile][kWarpRows / kTile];

  fetch(operands[0], s, blockIdx.y, first_tile, 0, chunks == 1);
  for (int step = 0, chunk = 0, tile = first_tile; step < steps; ++step) {
    Operands& now = operands[step % 2];
    __pipeline_wait_prior(0);
    __syncthreads();  // this step's operands are there, and nobody needs the other's any more
    const bool last = chunk == chunks - 1;
    const int next_chunk = last ? 0 : chunk + 1, next_tile = last ? tile + 1 : tile;
    if (step + 1 < steps) fetch(operands[(step + 1) % 2], s, blockIdx.y, next_tile, next_chunk, next_chunk == chunks - 1);
    if (chunk == 0)
      for (auto& line : products)
        for (auto& product : line) wmma::fill_fragment(product, 0);

#pragma unroll
    for (int depth = 0; depth < kDepth; depth += kTile) {
      wmma::fragment<wmma::matrix_a, kTile, kTile, kTile, half, wmma::row_major> left[kWarpQueries / kTile];
#pragma unroll
      for (int m = 0; m < kWarpQueries / kTile; ++m)
        wmma::load_matrix_sync(left[m], &now.lines[first_query + m * kTile][depth], kPitch);
#pragma unroll
      for (int n = 0; n < kWarpRows / kTile; ++n) {
        wmma::fragment<wmma::matrix_b, kTile, kTile, kTile, half, wmma::col_major> right;
        wmma::load_matrix_sync(right, &now.lines[kQueries + first_row + n * kTile][depth], kPitch);
#pragma unroll
        for (int m = 0; m < kWarpQueries / kTile; ++m) wmma::mma_sync(products[m][n], left[m], right, products[m][n]);
      }
    }

    if (last) {
      __syncthreads();  // everybody has used this step's operands: the products go there, a query a line
      float* stage = reinterpret_cast<float*>(now.lines) + warp * kWarpQueries * kStagePitch;
#pragma unroll
      for (int n = 0; n < kWarpRows / kTile; ++n) {
#pragma unroll
        for (int m = 0; m < kWarpQueries / kTile; ++m)
          wmma::store_matrix_sync(stage + m * kTile * kStagePitch, products[m][n], kStagePitch, wmma::mem_row_major);
        __syncwarp();
        for (int i = 0; i < kTile; i += 4) {
          const float4 four = *reinterpret_cast<const float4*>(stage + lane * kStagePitch + i);
          const float product[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const int row = first_row + n * kTile + i + j;
            const float* of = &now.row_terms[0][row];
            keep(bounds, rows, fmaf(product[j], terms.x, fmaf(of[kRows], terms.y, fmaf(of[2 * kRows], terms.z, *of))),
                 tile * kRows + row);
          }
        }
        __syncwarp();
      }
    }
    chunk = next_chunk, tile = next_tile;
  }
  const size_t list = query * s.lists + blockIdx.x * kLists + warp % kLists;
  s.bounds[list] = bounds;
  s.bound_rows[list] = rows;
}

// One warp a query; lanes hold a list each.
extern "C" __global__ void __launch_bounds__(kThreads) recheck(const Search s) {
  const int query = blockIdx.x * kWarps + threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (query >= s.query_count) return;
  const float norm = s.query_terms[query].w;
  if (isnan(norm)) return;  // a query that is not finite keeps kNone
  const float* from = s.queries + static_cast<size_t>(query) * s.dim;
  const float4* bounds = s.bounds + static_cast<size_t>(query) * s.lists;
  const int4* rows = s.bound_rows + static_cast<size_t>(query) * s.lists;

  float least = INFINITY;
  int row = -1;
  for (int list = lane; list < s.lists; list += kWarp)
    if (row < 0 || bounds[list].x < least) least = bounds[list].x, row = rows[list].x;
  for (int other = kWarp / 2; other > 0; other /= 2) {
    const float its = __shfl_xor_sync(~0u, least, other);
    const int its_row = __shfl_xor_sync(~0u, row, other);
    if (its_row >= 0 && (row < 0 || its < least || (its == least && its_row < row))) least = its, row = its_row;
  }
  unsigned long long best = ordered(squared_difference(from, s.rows + static_cast<size_t>(row) * s.dim, s.dim, lane), row);

  // what the bounds must exceed to exclude a row: the squared distance and its own rounding, less the query's norm
  const auto reach = [&] {
    const float squared = __uint_as_float(best >> 32);
    return (squared * (1 + s.rounding) + s.dim * 1e-44f) * s.scale * s.scale + 1e-37f;
  };
  bool lacking = false;
  for (int start = 0; start < s.lists; start += kWarp) {
    const int list = start + lane;
    const float4 of = list < s.lists ? bounds[list] : make_float4(INFINITY, INFINITY, INFINITY, INFINITY);
    const int4 at = list < s.lists ? rows[list] : make_int4(-1, -1, -1, -1);
    const float bound[4] = {of.x, of.y, of.z, of.w};
    const int candidate[4] = {at.x, at.y, at.z, at.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      unsigned some = __ballot_sync(~0u, candidate[i] >= 0 && !(bound[i] + norm > reach()));
      for (; some != 0; some &= some - 1) {
        const int its = __shfl_sync(~0u, candidate[i], __ffs(some) - 1);
        const float squared = squared_difference(from, s.rows + static_cast<size_t>(its) * s.dim, s.dim, lane);
        best = min(best, ordered(squared, its));
      }
    }
    lacking = lacking || (at.w >= 0 && !(of.w + norm > reach()));
  }
  lacking = __any_sync(~0u, lacking);
  if (lane > 0) return;
  s.best[query] = best;
  if (lacking) s.open[1 + atomicAdd(s.open, 1)] = query;
}

// All warps of the grid go through all rows with eight open queries at a time.
extern "C" __global__ void __launch_bounds__(kThreads) brute(const Search s) {
  const int lane = threadIdx.x % kWarp, warps = gridDim.x * kWarps, count = *s.open;
  const int warp = blockIdx.x * kWarps + threadIdx.x / kWarp;
  for (int start = 0; start < count; start += kGroup) {
    const float* from[kGroup];
    unsigned long long best[kGroup];
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      from[i] = s.queries + static_cast<size_t>(s.open[1 + min(start + i, count - 1)]) * s.dim;
      best[i] = kNone;
    }
    for (int row = warp * kBruteRows; row < s.row_count; row += warps * kBruteRows) {
      float sum[kGroup][kBruteRows] = {};
      for (int k = lane; k < s.dim; k += kWarp) {
#pragma unroll
        for (int j = 0; j < kBruteRows; ++j) {
          const float other = s.rows[static_cast<size_t>(min(row + j, s.row_count - 1)) * s.dim + k];
#pragma unroll
          for (int i = 0; i < kGroup; ++i) {
            const float difference = from[i][k] - other;
            sum[i][j] = fmaf(difference, difference, sum[i][j]);
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kGroup; ++i)
#pragma unroll
        for (int j = 0; j < kBruteRows; ++j)
          best[i] = min(best[i], ordered(warp_sum(sum[i][j]), min(row + j, s.row_count - 1)));
    }
#pragma unroll
    for (int i = 0; i < kGroup; ++i)
      if (lane == i && start + i < count) atomicMin(&s.best[s.open[1 + start + i]], best[i]);
  }
}

// One block an image.
extern "C" __global__ void __launch_bounds__(kThreads) pool(const Search s) {
  __shared__ double highest[kThreads];
  const size_t first = static_cast<size_t>(blockIdx.x) * s.patches;
  bool lost = false;
  for (int patch = threadIdx.x; patch < s.patches; patch += kThreads) {
    const unsigned long long best = s.best[first + patch];
    const float squared = __uint_as_float(best >> 32);  // kNone gives NaN
    float score = NAN;
    if (isfinite(squared)) score = (s.euclidean ? sqrtf(squared) : squared) - s.alpha * s.density[static_cast<unsigned>(best)];
    s.map[first + patch] = s.judged[patch] ? score : NAN;
    lost = lost || (s.judged[patch] && isnan(score));
  }
  lost = __syncthreads_or(lost);
  double mine = -INFINITY;
  for (int window = threadIdx.x; window < s.window_count; window += kThreads) {
    double sum = 0;
    int counted = 0;
    for (int i = 0; i < s.window_size; ++i) {
      const int patch = s.windows[window * s.window_size + i];
      if (patch >= 0) sum += s.map[first + patch], ++counted;
    }
    mine = fmax(mine, sum / counted);
  }
  highest[threadIdx.x] = mine;
  for (int half_way = kThreads / 2; half_way > 0; half_way /= 2) {
    __syncthreads();
    if (threadIdx.x < half_way) highest[threadIdx.x] = fmax(highest[threadIdx.x], highest[threadIdx.x + half_way]);
  }
  if (threadIdx.x == 0) s.scores[blockIdx.x] = lost ? NAN : static_cast<float>(highest[0]);
}
