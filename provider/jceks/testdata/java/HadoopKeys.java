import java.io.BufferedReader;
import java.io.ByteArrayOutputStream;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Base64;
import java.util.Collections;
import java.util.HexFormat;
import java.util.TreeMap;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.crypto.key.KeyProvider;
import org.apache.hadoop.crypto.key.KeyProviderFactory;

/**
 * Uses a keystore through Hadoop's own JavaKeyStoreProvider, as a KMS does. Each line of standard input is a request, of
 * words in base64: provider URI, then commands. It opens the keystore again. The answer is a line "ok TEXT" or "error
 * TEXT", the text in base64. Commands:
 * dump: for each key, and for those named as name=KEY, prints its metadata and versions
 * create=NAME:CIPHER:HEX  roll=NAME:HEX  delete=NAME: one change each; a flush follows.
 * use=URI: goes on with another keystore.
 */
public class HadoopKeys {
    public static void main(String[] unused) throws Exception {
        var in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.US_ASCII));
        for (String line; (line = in.readLine()) != null; ) {
            var text = new ByteArrayOutputStream();
            var out = new PrintStream(text, true, StandardCharsets.UTF_8);
            String how = "ok ";
            try {
                String[] words = line.split(" ");
                for (int i = 0; i < words.length; i++) {
                    words[i] = new String(Base64.getDecoder().decode(words[i]), StandardCharsets.UTF_8);
                }
                run(words, out);
            } catch (Throwable t) {
                how = "error ";
                t.printStackTrace(out);
            }
            System.out.println(how + Base64.getEncoder().encodeToString(text.toByteArray()));
        }
    }

    private static void run(String[] a, PrintStream out) throws Exception {
        KeyProvider p = KeyProviderFactory.get(new URI(a[0]), new Configuration());
        var names = new ArrayList<String>();
        for (int i = 1; i < a.length; i++) {
            String cmd = a[i].substring(0, (a[i] + "=").indexOf('='));
            String[] arg = a[i].substring(Math.min(a[i].length(), cmd.length() + 1)).split(":");
            switch (cmd) {
                case "use" -> {
                    p = KeyProviderFactory.get(new URI(a[i].substring(4)), new Configuration());
                    out.println(a[i]);
                }
                case "name" -> names.add(arg[0]);
                case "create" -> {
                    byte[] m = HexFormat.of().parseHex(arg[2]);
                    var o = new KeyProvider.Options(new Configuration()).setCipher(arg[1]).setBitLength(8 * m.length);
                    p.createKey(arg[0], m, o);
                    p.flush();
                }
                case "roll" -> {
                    p.rollNewVersion(arg[0], HexFormat.of().parseHex(arg[1]));
                    p.flush();
                }
                case "delete" -> {
                    p.deleteKey(arg[0]);
                    p.flush();
                }
                case "dump" -> {
                    var all = new ArrayList<String>(p.getKeys());
                    all.addAll(names);
                    Collections.sort(all);
                    for (String n : all) {
                        var m = p.getMetadata(n);
                        out.println(n + " " + m.getCipher() + " " + m.getBitLength() + " " + m.getCreated().getTime() + " "
                            + m.getVersions() + " " + m.getDescription() + " " + (m.getAttributes() == null ? "{}" : new TreeMap<>(m.getAttributes())));
                        for (var v : p.getKeyVersions(n)) {
                            out.println("  " + v.getVersionName() + " " + HexFormat.of().formatHex(v.getMaterial()));
                        }
                    }
                }
                default -> throw new IllegalArgumentException(a[i]);
            }
        }
    }
}
