// R x C elements. Row r is fed from the left, column c from above; sums leave at the top, row 0 first, a row every second
// cycle: row r's sum is ready r cycles after row 0's and then climbs r links. Column c is c cycles behind column 0.
// Two tiles must start at least 2R cycles apart, or their sums would meet in the chain.
module gemm_array #(
    parameter R = 8,
    parameter C = 8,
    parameter ACC = 32
) (
    input  wire             clk,
    input  wire             rst,
    input  wire [R*8-1:0]   x,
    input  wire [R-1:0]     first,
    input  wire [R-1:0]     last,
    input  wire [C*8-1:0]   w,
    output wire [C*ACC-1:0] top,       // column c's link in row 0
    output wire             top_valid  // column 0's link holds a finished sum
);
    // How an element is wired (r down, c to the right); one register in each direction:
    //
    //                  w[r][c]   result[r][c] = link_at[r*C+c], towards row 0
    //                     |          ^
    //      x[r][c] ---> [ element r,c ] ---> x[r][c+1]
    //                     |          ^
    //                 w[r+1][c]   below = link_at[(r+1)*C+c]
    //
    // x_at has a column more than there are elements and w_at, link_at a row more: the edges that are fed or left open.
    wire [7:0]     x_at      [0:R*(C+1)-1];
    wire           first_at  [0:R*(C+1)-1];
    wire           last_at   [0:R*(C+1)-1];
    wire [7:0]     w_at      [0:(R+1)*C-1];
    wire [ACC-1:0] link_at   [0:(R+1)*C-1];
    wire [R*C-1:0] finished;
    reg  [R:0]     climbing;

    genvar r, c;
    generate
        for (r = 0; r < R; r = r + 1) begin : feed
            assign x_at[r*(C+1)]     = x[r*8 +: 8];
            assign first_at[r*(C+1)] = first[r];
            assign last_at[r*(C+1)]  = last[r];
            // A sum of column 0 is in row r's link: finished here, or handed up from the row below. The other columns
            // follow c cycles later, so that this one chain of bits speaks for all.
            always @(posedge clk) climbing[r] <= ~rst & (finished[r*C] | climbing[r+1]);
        end
        for (c = 0; c < C; c = c + 1) begin : edges
            assign w_at[c]           = w[c*8 +: 8];
            assign link_at[R*C+c]    = {ACC{1'b0}};
            assign top[c*ACC +: ACC] = link_at[c];
        end
        for (r = 0; r < R; r = r + 1) begin : row
            for (c = 0; c < C; c = c + 1) begin : col
                gemm_pe #(.ACC(ACC)) pe (
                    .clk(clk), .rst(rst),
                    .x_in(x_at[r*(C+1)+c]), .first_in(first_at[r*(C+1)+c]), .last_in(last_at[r*(C+1)+c]),
                    .w_in(w_at[r*C+c]),
                    .x_out(x_at[r*(C+1)+c+1]), .first_out(first_at[r*(C+1)+c+1]), .last_out(last_at[r*(C+1)+c+1]),
                    .w_out(w_at[(r+1)*C+c]),
                    .below(link_at[(r+1)*C+c]), .result(link_at[r*C+c]), .finished(finished[r*C+c])
                );
            end
        end
    endgenerate
    always @(posedge clk) climbing[R] <= 1'b0;
    assign top_valid = climbing[0];
endmodule
