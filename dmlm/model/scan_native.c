/* Mamba's selective scan for one sequence of a batch: see scan.py for the formula and scan_native.py for the call.

   Channels are taken WIDTH at a time. Their states stay in the first-level cache through all of time; the forward pass
   keeps them before every run of STEPS steps, from which the backward pass computes a run again.

   All arrays are fp32 and contiguous: u, dt, y (L, B, D); A (N, D); B, C (L, B, N); start, last (B, N, D);
   kept (L / STEPS rounded up, B, N, D). */

#include <stdint.h>
#include <string.h>

#define WIDTH 32
#define STEPS 16
#define STATES 64 /* at most */

/* e^x for x <= 0, to about 1e-7 of its value: 2^(whole + part), the part by a polynomial */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    float whole = (float)(int32_t)(x * 1.44269504f - 0.5f); /* to nearest, as x <= 0 */
    float part = x - whole * 0.693359375f + whole * 2.12194440e-4f; /* x - whole ln 2, in two exact pieces */
    float power = 1.0f + part * (1.0f + part * (0.5f + part * (0.166666667f + part * (0.0416666667f
                  + part * (0.00833333333f + part * 0.00138888889f)))));
    union { int32_t bits; float value; } two = {((int32_t)whole + 127) << 23};
    return power * two.value;
}

void scan_forward(const float *u, const float *dt, const float *A, const float *B, const float *C, const float *start,
                  float *y, float *kept, float *last, int64_t L, int64_t batch, int64_t D, int64_t N, int64_t b) {
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
                    memcpy(kept + ((t / STEPS * batch + b) * N + n) * D + first, state[n], width * sizeof(float));
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

/* grad_B and grad_C must be zero before; grad_A is (B, N, D), to be summed over B */
void scan_backward(const float *u, const float *dt, const float *A, const float *B, const float *C, const float *kept,
                   const float *grad, float *grad_u, float *grad_dt, float *grad_A, float *grad_B, float *grad_C,
                   int64_t L, int64_t batch, int64_t D, int64_t N, int64_t b) {
    static _Thread_local float states[(STEPS + 1) * STATES][WIDTH], decays[STEPS * STATES][WIDTH]; /* step * N + n */
    for (int64_t first = 0; first < D; first += WIDTH) {
        int64_t width = D - first < WIDTH ? D - first : WIDTH;
        float rate[STATES][WIDTH], later[STATES][WIDTH], slope_A[STATES][WIDTH]; /* later: dL/dh before its own step */
        memset(rate, 0, sizeof rate);
        memset(later, 0, sizeof later);
        memset(slope_A, 0, sizeof slope_A);
        for (int64_t n = 0; n < N; n++) memcpy(rate[n], A + n * D + first, width * sizeof(float));
        for (int64_t run = (L - 1) / STEPS; run >= 0; run--) {
            int64_t begin = run * STEPS, steps = L - begin < STEPS ? L - begin : STEPS;
            float step[STEPS][WIDTH] = {{0}}, input[STEPS][WIDTH] = {{0}};
            for (int64_t n = 0; n < N; n++) {
                memset(states[n], 0, sizeof states[n]);
                memcpy(states[n], kept + ((run * batch + b) * N + n) * D + first, width * sizeof(float));
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
                        float flow = later[n][w] + slope[w] * out; /* dL/dh */
                        later[n][w] = decays[s * N + n][w] * flow;
                        float through = later[n][w] * states[s * N + n][w]; /* dL/d(dt A) */
                        slope_x[w] += flow * into;
                        slope_dt[w] += through * rate[n][w];
                        slope_A[n][w] += through * step[s][w];
                        sum_B += flow * step[s][w] * input[s][w];
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
