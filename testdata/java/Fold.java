import java.nio.charset.StandardCharsets;
import java.util.Locale;
import java.util.Scanner;

/** Writes each line of the standard input as String.toLowerCase makes it. */
public class Fold {
    public static void main(String[] args) throws Exception {
        Scanner in = new Scanner(System.in, "UTF-8").useDelimiter("\n");
        StringBuilder out = new StringBuilder();
        while (in.hasNext()) {
            out.append(in.next().toLowerCase(Locale.ENGLISH)).append('\n');
        }
        System.out.write(out.toString().getBytes(StandardCharsets.UTF_8));
        System.out.flush();
    }
}
