// oneDNN's CPU batch norm as a peer: see main.rs for the protocol. Memory and primitives are made once
// a case; the primitives are given the layout as it is.
#include <chrono>
#include <cstdint>
#include <functional>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>
#include <unordered_map>
#include <vector>

#include <oneapi/dnnl/dnnl.hpp>

using dnnl::batch_normalization_backward;
using dnnl::batch_normalization_forward;
using dnnl::memory;
using Tag = memory::format_tag;

static const size_t SAMPLES = 16;

static dnnl::engine cpu(dnnl::engine::kind::cpu, 0);
static dnnl::stream queue(cpu);

static float *data(const memory &m) { return static_cast<float *>(m.get_data_handle()); }

static void fill(const memory &m, const std::function<float(size_t)> &value) {
    size_t count = m.get_desc().get_size() / sizeof(float);
    for (size_t i = 0; i < count; i++) data(m)[i] = value(i);
}

static float value(size_t i, uint32_t seed) {
    uint32_t mixed = (uint32_t(i) * 2654435761u + seed) >> 8;
    return float(mixed) / 1048576.0f - 7.0f;
}

static Tag tag(size_t dims, bool last) {
    switch (dims) {
    case 2: return Tag::nc;
    case 3: return last ? Tag::nwc : Tag::ncw;
    case 4: return last ? Tag::nhwc : Tag::nchw;
    default: return last ? Tag::ndhwc : Tag::ncdhw;
    }
}

struct Case {
    memory out, dgamma, dbeta;
    std::unordered_map<std::string, std::function<void()>> calls;

    Case(const std::string &shape, bool last) {
        memory::dims dims;
        std::stringstream sizes(shape);
        for (std::string size; std::getline(sizes, size, 'x');) dims.push_back(std::stol(size));
        const auto f32 = memory::data_type::f32;
        memory::desc tensor(dims, f32, tag(dims.size(), last)), channel({dims[1]}, f32, Tag::x);
        float channels = float(dims[1]);
        memory x(tensor, cpu), dy(tensor, cpu), gamma(channel, cpu), beta(channel, cpu);
        memory mean(channel, cpu), var(channel, cpu);
        memory running_mean(channel, cpu), running_var(channel, cpu);
        out = memory(tensor, cpu);
        dgamma = memory(channel, cpu);
        dbeta = memory(channel, cpu);
        fill(x, [](size_t i) { return value(i, 0); });
        fill(dy, [](size_t i) { return value(i, 0x9e3779b9u); });
        fill(gamma, [=](size_t i) { return 1.0f + float(i) / channels; });
        fill(beta, [=](size_t i) { return float(i) / channels - 0.5f; });
        fill(running_mean, [](size_t) { return 0.5f; });
        fill(running_var, [](size_t) { return 2.0f; });

        using Flags = dnnl::normalization_flags;
        const auto flags = Flags::use_scale | Flags::use_shift;
        batch_normalization_forward::primitive_desc train(
            cpu, dnnl::prop_kind::forward_training, tensor, tensor, 1e-5f, flags);
        batch_normalization_forward::primitive_desc infer(
            cpu, dnnl::prop_kind::forward_inference, tensor, tensor, 1e-5f,
            flags | Flags::use_global_stats);
        batch_normalization_backward::primitive_desc back(
            cpu, dnnl::prop_kind::backward, tensor, tensor, tensor, 1e-5f, flags, train);
        auto call = [](dnnl::primitive primitive, std::unordered_map<int, memory> arguments) {
            return [=] {
                primitive.execute(queue, arguments);
                queue.wait();
            };
        };
        calls["forward"] = call(batch_normalization_forward(train),
            {{DNNL_ARG_SRC, x}, {DNNL_ARG_DST, out}, {DNNL_ARG_MEAN, mean}, {DNNL_ARG_VARIANCE, var},
             {DNNL_ARG_SCALE, gamma}, {DNNL_ARG_SHIFT, beta}});
        calls["inference"] = call(batch_normalization_forward(infer),
            {{DNNL_ARG_SRC, x}, {DNNL_ARG_DST, out}, {DNNL_ARG_MEAN, running_mean},
             {DNNL_ARG_VARIANCE, running_var}, {DNNL_ARG_SCALE, gamma}, {DNNL_ARG_SHIFT, beta}});
        calls["backward"] = call(batch_normalization_backward(back),
            {{DNNL_ARG_SRC, x}, {DNNL_ARG_DIFF_DST, dy}, {DNNL_ARG_DIFF_SRC, out},
             {DNNL_ARG_MEAN, mean}, {DNNL_ARG_VARIANCE, var}, {DNNL_ARG_SCALE, gamma},
             {DNNL_ARG_DIFF_SCALE, dgamma}, {DNNL_ARG_DIFF_SHIFT, dbeta}});
        calls["forward"]();
    }
};

int main() {
    using Clock = std::chrono::steady_clock;
    const dnnl_version_t *v = dnnl_version();
    std::cout << "{\"version\": \"oneDNN " << v->major << '.' << v->minor << '.' << v->patch
              << "\"}" << std::endl;
    std::string name, line;
    std::unique_ptr<Case> last;
    while (std::getline(std::cin, line)) {
        std::string shape, layout, operation;
        int count = 1;
        std::stringstream(line) >> shape >> layout >> operation >> count;
        if (name != shape + layout) {
            last.reset();
            last = std::make_unique<Case>(shape, layout == "nhwc");
            name = shape + layout;
        }
        auto &call = last->calls.at(operation);
        call();
        auto start = Clock::now();
        for (int i = 0; i < count; i++) call();
        double seconds = std::chrono::duration<double>(Clock::now() - start).count() / count;
        std::vector<memory> written{last->out};
        if (operation == "backward") written.insert(written.end(), {last->dgamma, last->dbeta});
        std::cout << "{\"seconds\": " << seconds << ", \"samples\": [";
        const char *comma = "";
        for (const memory &m : written) {
            size_t end = m.get_desc().get_size() / sizeof(float) - 1;
            for (size_t i = 0; i < SAMPLES; i++, comma = ", ")
                std::cout << comma << data(m)[i * end / (SAMPLES - 1)];
        }
        std::cout << "]}" << std::endl;
    }
}
