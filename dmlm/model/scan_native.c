/* Mamba's selective scan for sequence b of a batch: see scan.py for the formula and scan_native.py for the calls.

   WIDTH channels are processed at a time, over all time steps, so that their states stay in the first-level cache. The
   forward pass stores the states before every run of STEPS steps; the backward pass computes each run again from them.

   All arrays are fp32 and contiguous: u, dt, y (L, B, D); A (N, D); B, C (L, B, N); start, last (B, N, D);
   run_starts (L / STEPS rounded up, B, N, D), the states before each run. */

#include <stdint.h>
#include <string.h>

#define WIDTH 32
#define STEPS 16
#define STATES 64 /* at most */

/* e^x for x <= 0, relative error about 1e-7: 2^exponent * e^rest, e^rest by a polynomial */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    float exponent = (float)(int32_t)(x * 1.44269504f - 0.5f); /* rounds to nearest, as x <= 0 */
    float rest = x - exponent * 0.693359375f + exponent * 2.12194440e-4f; /* x - exponent ln 2; ln 2 in two parts */
    float power = 1.0f + rest * (1.0f + rest * (0.5f + rest * (0.166666667f + rest * (0.0416666667f
                  + rest * (0.00833333333f + rest * 0.00138888889f)))));
    union { int32_t bits; float value; } two = {((int32_t)exponent + 127) << 23};
    return power * two.value;
}

void scan_forward(const float *u, const float *dt, const float *A, const float *B, const float *C, const float *start,
                  float *y, float *run_starts, float *last, int64_t L, int64_t batch, int64_t D, int64_t N, int64_t b) {
    for (int64_t first = 0; first < D; first += WIDTH) {
        int64_t width = D - first < WIDTH ? D - first : WIDTH;
        float state[STATES][WIDTH], rate[STATES][WIDTH];
        memset(rate, 0, sizeof rate);
        memset(state, 0, sizeof state);
        for (int64_t n = 0; n < N; n++) {
            memcpy(rate[n], A + n * D + first, width * sizeof(float));
            memcpy(state[n], start + (b * N + n) * D + first, width * sizeof(float));
        }
        for (int64_t t = 0; t < L; t++) {
            int64_t row = t * batch + b;
            if (t % STEPS == 0)
                for (int64_t n = 0; n < N; n++)
                    memcpy(run_starts + ((t / STEPS * batch + b) * N + n) * D + first, state[n], width * sizeof(float));
            float step[WIDTH] = {0}, added[WIDTH] = {0}, sum[WIDTH] = {0};
            memcpy(step, dt + row * D + first, width * sizeof(float));
            memcpy(added, u + row * D + first, width * sizeof(float));
            for (int w = 0; w < WIDTH; w++) added[w] *= step[w];
            for (int64_t n = 0; n < N; n++) {
                float into = B[row * N + n], out = C[row * N + n];
                for (int w = 0; w < WIDTH; w++) {
                    state[n][w] = exponential(step[w] * rate[n][w]) * state[n][w] + added[w] * into;
                    sum[w] += out * state[n][w];
                }
            }
            memcpy(y + row * D + first, sum, width * sizeof(float));
        }
        for (int64_t n = 0; n < N; n++) memcpy(last + (b * N + n) * D + first, state[n], width * sizeof(float));
    }
}

/* grad_B and grad_C must be zero on entry; grad_A is (B, N, D), which the caller sums over B */
void scan_backward(const float *u, const float *dt, const float *A, const float *B, const float *C, const float *run_starts,
                   const float *grad, float *grad_u, float *grad_dt, float *grad_A, float *grad_B, float *grad_C,
                   int64_t L, int64_t batch, int64_t D, int64_t N, int64_t b) {
    /* row step * N + n of each */
    static _Thread_local float states[(STEPS + 1) * STATES][WIDTH], decays[STEPS * STATES][WIDTH];
    for (int64_t first = 0; first < D; first += WIDTH) {
        int64_t width = D - first < WIDTH ? D - first : WIDTH;
        float rate[STATES][WIDTH], later[STATES][WIDTH], slope_A[STATES][WIDTH]; /* later: dL/dh from later steps */
        memset(rate, 0, sizeof rate);
        memset(later, 0, sizeof later);
        memset(slope_A, 0, sizeof slope_A);
        for (int64_t n = 0; n < N; n++) memcpy(rate[n], A + n * D + first, width * sizeof(float));
        for (int64_t run = (L - 1) / STEPS; run >= 0; run--) {
            int64_t begin = run * STEPS, steps = L - begin < STEPS ? L - begin : STEPS;
            float step[STEPS][WIDTH] = {{0}}, input[STEPS][WIDTH] = {{0}};
            for (int64_t n = 0; n < N; n++) {
                memset(states[n], 0, sizeof states[n]);
                memcpy(states[n], run_starts + ((run * batch + b) * N + n) * D + first, width * sizeof(float));
            }
            for (int64_t s = 0; s < steps; s++) {
                int64_t row = (begin + s) * batch + b;
                memcpy(step[s], dt + row * D + first, width * sizeof(float));
                memcpy(input[s], u + row * D + first, width * sizeof(float));
                for (int64_t n = 0; n < N; n++) {
                    float into = B[row * N + n];
                    for (int w = 0; w < WIDTH; w++) {
                        float decay = exponential(step[s][w] * rate[n][w]);
                        decays[s * N + n][w] = decay;
                        states[(s + 1) * N + n][w] = decay * states[s * N + n][w] + step[s][w] * input[s][w] * into;
                    }
                }
            }
            for (int64_t s = steps - 1; s >= 0; s--) {
                int64_t row = (begin + s) * batch + b;
                float slope[WIDTH] = {0}, slope_x[WIDTH] = {0}, slope_dt[WIDTH] = {0};
                memcpy(slope, grad + row * D + first, width * sizeof(float));
                for (int64_t n = 0; n < N; n++) {
                    float into = B[row * N + n], out = C[row * N + n], sum_B = 0, sum_C = 0;
#pragma omp simd reduction(+ : sum_B, sum_C)
                    for (int w = 0; w < WIDTH; w++) {
                        float grad_h = later[n][w] + slope[w] * out;
                        later[n][w] = decays[s * N + n][w] * grad_h;
                        float grad_dtA = later[n][w] * states[s * N + n][w];
                        slope_x[w] += grad_h * into;
                        slope_dt[w] += grad_dtA * rate[n][w];
                        slope_A[n][w] += grad_dtA * step[s][w];
                        sum_B += grad_h * step[s][w] * input[s][w];
                        sum_C += states[(s + 1) * N + n][w] * slope[w];
                    }
                    grad_B[row * N + n] += sum_B;
                    grad_C[row * N + n] += sum_C;
                }
                for (int w = 0; w < WIDTH; w++) {
                    slope_dt[w] += slope_x[w] * input[s][w];
                    slope_x[w] *= step[s][w];
                }
                memcpy(grad_u + row * D + first, slope_x, width * sizeof(float));
                memcpy(grad_dt + row * D + first, slope_dt, width * sizeof(float));
            }
        }
        for (int64_t n = 0; n < N; n++) memcpy(grad_A + (b * N + n) * D + first, slope_A[n], width * sizeof(float));
    }
}
