// From an image to a class, the map of where it was seen, and the map's best threshold: one call.
//
// The graph is made by: whycam export MODEL --outputs tft --embed-preprocess -o model.onnx

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>
#include <openvino/openvino.hpp>

#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STBI_FAILURE_USERMSG
#include <stb/stb_image.h>
#include <stb/stb_image_write.h>

using nlohmann::json;

namespace {

struct Image {
    size_t height, width;
    std::vector<uint8_t> rgb;
};

struct Options {
    std::string model, image, overlay, json_file;
    int64_t target = -1;  // the most probable class
};

Options parse(int count, char** words) {
    Options options;
    std::vector<std::string> places;
    for (int i = 1; i < count; ++i) {
        const std::string word = words[i];
        if (word.size() < 2 || word[0] != '-') {
            places.push_back(word);
            continue;
        }
        if (++i == count) throw std::runtime_error(word + " needs a value");
        if (word == "-o") options.overlay = words[i];
        else if (word == "--json") options.json_file = words[i];
        else if (word == "--class") {
            try {
                options.target = std::stoll(words[i]);
            } catch (const std::exception&) {
                throw std::runtime_error("--class takes a number, not " + std::string(words[i]));
            }
        } else throw std::runtime_error("there is no option " + word);
    }
    if (places.size() != 2) {
        throw std::runtime_error(
            "usage: explain MODEL.onnx IMAGE [-o OVERLAY.png] [--class N] [--json FILE]");
    }
    options.model = places[0];
    options.image = places[1];
    return options;
}

Image read_image(const std::string& path) {
    int width = 0, height = 0, channels = 0;
    std::unique_ptr<stbi_uc, decltype(&stbi_image_free)> pixels(
        stbi_load(path.c_str(), &width, &height, &channels, 3), stbi_image_free);
    if (!pixels) throw std::runtime_error("cannot read " + path + ": " + stbi_failure_reason());
    const size_t size = size_t(width) * height * 3;
    return {size_t(height), size_t(width), {pixels.get(), pixels.get() + size}};
}

json read_manifest(const std::shared_ptr<ov::Model>& model, const std::string& path) {
    if (!model->has_rt_info("framework", "whycam")) {
        throw std::runtime_error(path + " was not made by whycam export");
    }
    const json manifest = json::parse(model->get_rt_info<std::string>("framework", "whycam"));
    const json& outputs = manifest.at("outputs");
    if (std::find(outputs.begin(), outputs.end(), "tft") == outputs.end() ||
        !manifest.at("embedded_preprocess").get<bool>()) {
        throw std::runtime_error(
            path + " cannot be used here: export it with --outputs tft --embed-preprocess");
    }
    if (manifest.contains("class_embeddings") && !manifest.at("class_embeddings").is_null()) {
        throw std::runtime_error(
            path + " takes its classes as an input: export it with --classes FILE");
    }
    return manifest;
}

std::vector<float> numbers(ov::InferRequest& request, const std::string& name) {
    const ov::Tensor tensor = request.get_tensor(name);
    const float* data = tensor.data<float>();
    return {data, data + tensor.get_size()};
}

// Where the middle of a pixel of the image lies in the map; outside the crop there is nothing.
struct Placement {
    double scale_y, scale_x, top, left;
};

Placement place(const Image& image, const json& spec) {
    const std::vector<double> size = spec.at("size"), resize = spec.at("resize");
    double height = image.height, width = image.width;
    if (resize.size() == 2) {
        height = resize[0];
        width = resize[1];
    } else if (resize.size() == 1) {
        const double shorter = std::min(height, width);
        height = std::floor(resize[0] * image.height / shorter);
        width = std::floor(resize[0] * image.width / shorter);
    }
    return {height / image.height, width / image.width, (height - size[0]) / 2,
            (width - size[1]) / 2};
}

float sample(const std::vector<float>& map, int rows, int columns, double y, double x) {
    if (y < -0.5 || x < -0.5 || y > rows - 0.5 || x > columns - 0.5) return 0;
    y = std::clamp(y, 0.0, rows - 1.0);
    x = std::clamp(x, 0.0, columns - 1.0);
    const int top = int(y), left = int(x);
    const int bottom = std::min(top + 1, rows - 1), right = std::min(left + 1, columns - 1);
    const double v = y - top, u = x - left;
    const auto at = [&](int row, int column) { return map[size_t(row) * columns + column]; };
    return float((1 - v) * ((1 - u) * at(top, left) + u * at(top, right)) +
                 v * ((1 - u) * at(bottom, left) + u * at(bottom, right)));
}

// From violet over orange to yellow, ever brighter; as opaque as the map is high.
void draw(Image& image, const std::vector<float>& map, const json& spec) {
    static const double colours[4][3] = {
        {66, 10, 104}, {147, 38, 103}, {221, 81, 58}, {252, 200, 40}};
    const Placement where = place(image, spec);
    const int rows = spec.at("size")[0], columns = spec.at("size")[1];
    for (size_t row = 0; row < image.height; ++row) {
        for (size_t column = 0; column < image.width; ++column) {
            const double y = (row + 0.5) * where.scale_y - where.top - 0.5;
            const double x = (column + 0.5) * where.scale_x - where.left - 0.5;
            const double value = sample(map, rows, columns, y, x);
            const double opacity = 0.75 * std::min(1.0, 2 * value);
            const int step = std::min(int(value * 3), 2);
            for (int c = 0; c < 3; ++c) {
                const double between = value * 3 - step;
                const double heat =
                    (1 - between) * colours[step][c] + between * colours[step + 1][c];
                uint8_t& pixel = image.rgb[(row * image.width + column) * 3 + c];
                pixel = uint8_t(std::lround((1 - opacity) * pixel + opacity * heat));
            }
        }
    }
}

void write_text(const std::string& path, const std::string& text) {
    std::ofstream file(path);
    file << text;
    file.close();
    if (!file) throw std::runtime_error("cannot write " + path);
}

std::shared_ptr<ov::Model> read_model(ov::Core& core, const std::string& path) {
    try {
        return core.read_model(path);
    } catch (const ov::Exception&) {
        throw std::runtime_error(path + " is missing or is no ONNX file that OpenVINO can read");
    }
}

void explain(const Options& options) {
    ov::Core core;
    const auto model = read_model(core, options.model);
    const json manifest = read_manifest(model, options.model);
    const int64_t classes = manifest.at("num_classes");
    if (options.target >= classes || options.target < -5) {
        throw std::runtime_error("class " + std::to_string(options.target) + " is none of 0 to " +
                                 std::to_string(classes - 1) + " or -1 (most probable) to -5");
    }
    Image image = read_image(options.image);

    // Said outright: on some processors OpenVINO would otherwise compute in bfloat16.
    auto compiled =
        core.compile_model(model, "CPU", ov::hint::inference_precision(ov::element::f32));
    auto request = compiled.create_infer_request();
    int64_t target = options.target;
    request.set_tensor("image", ov::Tensor(ov::element::u8, {1, image.height, image.width, 3},
                                           image.rgb.data()));
    request.set_tensor("target", ov::Tensor(ov::element::i64, {1, 1}, &target));
    request.infer();

    const int64_t index = request.get_tensor("targets").data<int64_t>()[0];
    const float probability = numbers(request, "probabilities").at(index);
    if (!std::isfinite(probability)) throw std::runtime_error("the network returned no number");
    const auto rpi = numbers(request, "rpi"), map = numbers(request, "maps");
    const float threshold = numbers(request, "thresholds").at(0);
    const json& labels = manifest.at("labels");
    const std::string label = labels.empty() ? "class " + std::to_string(index)
                                             : labels.at(index).get<std::string>();

    std::cout << label << " (" << index << "), probability " << probability << ", tau* "
              << threshold << ", largest rpi " << *std::max_element(rpi.begin(), rpi.end())
              << std::endl;
    if (!options.json_file.empty()) {
        const json answer = {{"index", index}, {"label", label}, {"probability", probability},
                             {"threshold", threshold}, {"rpi", rpi}, {"map", map},
                             {"original_map", numbers(request, "original_maps")},
                             {"shape", manifest.at("preprocess").at("size")}};
        write_text(options.json_file, answer.dump());
    }
    if (!options.overlay.empty()) {
        draw(image, map, manifest.at("preprocess"));
        if (!stbi_write_png(options.overlay.c_str(), int(image.width), int(image.height), 3,
                            image.rgb.data(), 0)) {
            throw std::runtime_error("cannot write " + options.overlay);
        }
    }
}

}  // namespace

int main(int count, char** words) {
    try {
        explain(parse(count, words));
        return 0;
    } catch (const std::exception& error) {
        const std::string text = error.what();
        std::cerr << "error: " << text.substr(0, text.find('\n')) << std::endl;
        return 2;
    }
}
