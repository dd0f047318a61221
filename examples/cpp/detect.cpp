// Detect objects in images with a model that detr-d2 export wrote: an .xml with its .bin, or an .onnx. Needs OpenVINO.
//
//     detect model.xml 0.5 photo.ppm more/*.ppm       # 0.5: the minimum score
//
// Images are PPM files, which need no library to decode them; a program passes on the pixels that it has.

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <map>
#include <memory>
#include <openvino/openvino.hpp>
#include <openvino/opsets/opset11.hpp>
#include <stdexcept>
#include <string>
#include <vector>

// Values of the JSON object in a file: a text, a number or a list of texts, each as texts. Values of other kinds, which
// this program does not need, are passed over.
using Info = std::map<std::string, std::vector<std::string>>;

std::string read_string(const std::string& json, size_t& at) {
    std::string text;
    while (json.at(++at) != '"') {
        // detr-d2 writes characters as they are: of the escapes only \" and \\ occur in names.
        text += json[at] == '\\' ? json.at(++at) : json[at];
    }
    ++at;
    return text;
}

Info parse_info(const std::string& json) {
    Info info;
    std::string key;
    int depth = 0;
    for (size_t at = 0; at < json.size();) {
        const char c = json[at];
        if (c == '"') {
            const std::string text = read_string(json, at);
            if (depth == 1 && json.compare(at, 1, ":") == 0) {
                key = text;
                continue;
            }
            info[key].push_back(text);
        } else if (std::isalnum(static_cast<unsigned char>(c)) || c == '-') {
            const size_t end = json.find_first_of(",]} ", at);
            info[key].push_back(json.substr(at, end - at));
            at = end;
        } else {
            depth += (c == '{') - (c == '}');
            ++at;
        }
    }
    return info;
}

// Read an image as (1, height, width, 3) RGB.
ov::Tensor read_ppm(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string magic;
    size_t width = 0, height = 0, maximum = 0;
    if (!(file >> magic >> width >> height >> maximum) || magic != "P6" || maximum != 255) {
        throw std::runtime_error(path + " is not a PPM image of 8 bits: magick photo.jpg -auto-orient photo.ppm");
    }
    file.get();
    ov::Tensor image(ov::element::u8, {1, height, width, 3});
    file.read(static_cast<char*>(image.data()), static_cast<std::streamsize>(image.get_byte_size()));
    if (!file) {
        throw std::runtime_error(path + " is cut off");
    }
    return image;
}

// Resizes the shorter side to min_size pixels, or less where the longer would exceed max_size; 0: not at all. By
// Pillow's bilinear filter, as in training: another one costs accuracy.
class Resizer {
public:
    Resizer(ov::Core& core, const Info& info)
        : min_size_(std::stod(info.at("min_size").at(0))), max_size_(std::stod(info.at("max_size").at(0))) {
        using namespace ov::opset11;
        const auto image = std::make_shared<Parameter>(ov::element::u8, ov::PartialShape{1, -1, -1, 3});
        const auto size = std::make_shared<Parameter>(ov::element::i64, ov::PartialShape{2});
        const auto axes = Constant::create(ov::element::i64, {2}, {1, 2});
        Interpolate::InterpolateAttrs attributes;
        attributes.mode = Interpolate::InterpolateMode::BILINEAR_PILLOW;
        attributes.shape_calculation_mode = Interpolate::ShapeCalcMode::SIZES;
        attributes.pads_begin = attributes.pads_end = {0, 0, 0, 0};
        const auto resized = std::make_shared<Interpolate>(image, size, axes, attributes);
        const auto model = std::make_shared<ov::Model>(ov::OutputVector{resized}, ov::ParameterVector{image, size});
        request_ = core.compile_model(model, "CPU").create_infer_request();
    }

    ov::Tensor operator()(const ov::Tensor& image) {
        const double height = image.get_shape()[1], width = image.get_shape()[2];
        const double shorter = std::min(height, width), longer = std::max(height, width);
        double size = min_size_;
        if (longer / shorter * size > max_size_) {
            size = std::max(1.0, std::nearbyint(max_size_ * shorter / longer));
        }
        if (min_size_ == 0 || size == shorter) {
            return image;
        }
        const auto resized = [&](double side) -> int64_t { return side == shorter ? size : size * longer / shorter; };
        int64_t sides[] = {resized(height), resized(width)};
        request_.set_input_tensor(0, image);
        request_.set_input_tensor(1, ov::Tensor(ov::element::i64, {2}, sides));
        request_.infer();
        return request_.get_output_tensor(0);
    }

private:
    double min_size_, max_size_;
    ov::InferRequest request_;
};

// Return (1, height, width, 3) pixels as the (1, 3, rows, columns) images that the file takes, padded with zeros where
// it takes certain sizes only.
ov::Tensor to_input(const ov::Tensor& image, const Info& info) {
    const size_t height = image.get_shape()[1], width = image.get_shape()[2];
    const size_t square = std::stoul(info.at("square_size").at(0));
    const size_t divisor = std::max(1UL, std::stoul(info.at("size_divisibility").at(0)));
    const auto padded = [&](size_t side) { return square > 0 ? square : (side + divisor - 1) / divisor * divisor; };
    const size_t rows = padded(height), columns = padded(width);
    const bool is_bgr = info.at("image_format").at(0) == "BGR", is_float = info.at("dtype").at(0) == "float32";
    ov::Tensor input(is_float ? ov::element::f32 : ov::element::u8, {1, 3, rows, columns});
    std::memset(input.data(), 0, input.get_byte_size());
    const auto copy = [&](auto* to) {
        const auto* from = image.data<uint8_t>();
        for (size_t i = 0; i < height * width; ++i) {
            for (size_t channel = 0; channel < 3; ++channel) {
                const size_t pixel = (channel * rows + i / width) * columns + i % width;
                to[pixel] = from[3 * i + (is_bgr ? 2 - channel : channel)];
            }
        }
    };
    is_float ? copy(input.data<float>()) : copy(input.data<uint8_t>());
    return input;
}

Info read_info(const std::shared_ptr<ov::Model>& model, const std::string& path) {
    // OpenVINO keeps what an .onnx carries under "framework".
    for (const auto& names : {std::vector<std::string>{"detr_d2_info"}, {"framework", "detr_d2_info"}}) {
        if (model->has_rt_info(names)) {
            Info info = parse_info(model->get_rt_info<std::string>(names));
            if (info.at("outputs").at(0) != "detections") {
                throw std::runtime_error(path + " has raw outputs: export it again with --outputs detections");
            }
            return info;
        }
    }
    throw std::runtime_error(path + " has no class names and sizes: make it with detr-d2 export");
}

// Print the detections in an image. Boxes in the file's output are in the pixels of the resized image.
void detect(ov::InferRequest& request, Resizer& resize, const Info& info, const std::string& path, double min_score) {
    const ov::Tensor image = read_ppm(path), resized = resize(image);
    int64_t size[] = {static_cast<int64_t>(resized.get_shape()[1]), static_cast<int64_t>(resized.get_shape()[2])};
    request.set_tensor("images", to_input(resized, info));
    request.set_tensor("sizes", ov::Tensor(ov::element::i64, {1, 2}, size));
    request.infer();
    const ov::Tensor boxes = request.get_tensor("boxes"), labels = request.get_tensor("labels");
    const ov::Tensor scores = request.get_tensor("scores");
    const double y = 1.0 * image.get_shape()[1] / size[0], x = 1.0 * image.get_shape()[2] / size[1];
    for (size_t k = 0; k < scores.get_size(); ++k) {
        const float score = scores.data<float>()[k];
        if (score >= min_score) {
            const std::string& name = info.at("class_names").at(labels.data<int64_t>()[k]);
            const float* box = boxes.data<float>() + 4 * k;
            std::printf("%s: %s %.3f [%.1f, %.1f, %.1f, %.1f]\n", path.c_str(), name.c_str(), score, box[0] * x,
                        box[1] * y, box[2] * x, box[3] * y);
        }
    }
}

int main(int argc, char** argv) try {
    if (argc < 4) {
        throw std::runtime_error("usage: detect MODEL.xml MIN_SCORE IMAGE.ppm ...");
    }
    if (!std::ifstream(argv[1])) {
        throw std::runtime_error(std::string(argv[1]) + " does not exist: give a file that detr-d2 export wrote");
    }
    ov::Core core;
    const auto model = core.read_model(argv[1]);
    const Info info = read_info(model, argv[1]);
    Resizer resize(core, info);
    // By default processors with bfloat16 use it.
    const auto precision = ov::hint::inference_precision(ov::element::f32);
    ov::InferRequest request = core.compile_model(model, "CPU", precision).create_infer_request();
    for (int i = 3; i < argc; ++i) {
        detect(request, resize, info, argv[i], std::stod(argv[2]));
    }
} catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
